"""The drawing of the state: right colours in the right places, and nothing of a text becomes a tag."""

import re
from html import unescape
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps

from app.engine import Engine, EngineConfig
from app.web.heat_map import GAP, ROW, Token, draw, field, number
from app.web.state_view import MOST, trace
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.remembering import Remembered, remember


def test_a_head_has_its_colour_in_its_layer_at_its_token(seed: int) -> None:
    T, L, H = 7, 3, 2
    values = np.random.default_rng(seed).random((T, L, H))
    drawn = np.asarray(field(values, "viridis", 0.0, 1.0))
    assert drawn.shape == (L * (H * ROW + GAP) - GAP, T, 4)
    for t, layer, head in np.ndindex(T, L, H):
        top = layer * (H * ROW + GAP) + head * ROW
        expected = colormaps["viridis"](values[t, layer, head], bytes=True)
        assert (drawn[top : top + ROW, t] == expected).all(), f"seed {seed}"
    assert not drawn[H * ROW : H * ROW + GAP, :, 3].any()


def test_numbers_are_written_as_people_write_them() -> None:
    told = {1220.4: "1,220", 999.6: "1,000", 31.62: "31.6", 1.0: "1.00", 0.5453: "0.545", 1e-6: "0.000001"}
    assert {value: number(value) for value in told} == told


def test_tokens_are_told_and_not_run() -> None:
    texts = ["<script>x</script>", '" onclick="x', "&amp;", "plain"]
    figures = Remembered(torch.rand(5, 2, 2), torch.rand(5, 2, 2))
    html = draw(figures, [*map(Token, texts), Token("picture", True)])
    assert "<script" not in html
    told = [unescape(value) for value in re.findall(r'data-token="([^"]*)"', html)]
    assert told == [*(f"{number}: {text!r}" for number, text in enumerate(texts, 1)), "5: picture"]
    with pytest.raises(ValueError, match="1 tokens for the figures of 5 steps"):
        draw(figures, [Token("a")])
    draw(Remembered(torch.zeros(1, 1, 1), torch.ones(1, 1, 1)), [Token("a")])  # nothing to tell apart


def test_a_trace_is_of_what_a_question_would_read(listening_model: Any, pictures: Any, wave: Any) -> None:
    pipeline = Pipeline(listening_model, "listening")
    media = [{"type": "image", "image": pictures["red"]}, {"type": "audio", "audio": wave}]
    messages = [{"role": "user", "content": [*media, {"type": "text", "text": "What is in the picture?"}]}]
    with Engine(pipeline, EngineConfig(slots=2)) as engine:
        *said, (seen, tokens) = trace(engine, messages)
    batch = pipeline.processor(messages, generate=False)
    sounds = torch.cat(list(pipeline._hear(batch)))
    with torch.no_grad():
        x = pipeline.model.embed(batch.ids, pipeline._encode(batch), sounds)[0]
    expected, state = remember(pipeline.model.lm, pipeline.step, x)
    torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-4)
    assert len(tokens) == len(x) == state.tokens_seen
    assert "".join(token.text for token in tokens if not token.medium).startswith("User: ")
    kinds = [token.text for token in tokens if token.medium]
    assert kinds == sorted(kinds)
    assert kinds.count("sound") == len(sounds)
    assert said[-1] == f"{len(x)} of {len(x)} tokens read"


def test_what_is_too_long_to_be_shown_is_refused(tiny_model: Any) -> None:
    with (
        Engine(Pipeline(tiny_model)) as engine,
        pytest.raises(ValueError, match=f"at most {MOST:,} can be shown"),
    ):
        next(trace(engine, [{"role": "user", "content": "a red square " * MOST}]))
