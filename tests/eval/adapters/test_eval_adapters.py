"""The adapters answer as `Pipeline` does: with stand-ins for the harnesses, and inside them where they are there."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.adapters.options import place, sampling
from mm_rwkv7.pipeline import Pipeline, question_about
from mm_rwkv7.sampling import Sampling
from tests.ears import RATE, noise
from tests.eval.adapters.stand_ins import Instance, stand_in

ROOT = Path(__file__).resolve().parents[3]
QUESTION = "What is in the picture?"
RED = Image.new("RGB", (40, 30), "red")


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with monkeypatch.context() as patch:
        stand_in(patch)
        yield patch
    for adapter in ("lm_eval", "lmms_eval"):
        sys.modules.pop(f"eval.adapters.{adapter}", None)


@pytest.fixture(scope="module")
def pipe(listening_checkpoint: Path) -> Pipeline:
    return Pipeline.from_pretrained(listening_checkpoint)


def test_options_of_generation() -> None:
    assert sampling({}, 9) == Sampling(max_new_tokens=9, seed=0)
    asked = {"max_gen_toks": 5, "until": ["\n\n", "", "Q:"], "do_sample": False, "temperature": 0.7, "num_beams": 1}
    assert sampling(asked, 9) == Sampling(max_new_tokens=5, seed=0, stop=("\n\n", "Q:"))
    drawn = sampling({"max_new_tokens": 4, "until": "\n", "do_sample": True, "top_p": 0.5, "top_k": 3}, 9)
    assert drawn == Sampling(max_new_tokens=4, temperature=1.0, top_p=0.5, top_k=3, seed=0, stop=("\n",))
    assert sampling({"temperature": 0.5}, 9).temperature == 0.5
    with pytest.raises(ValueError, match=r"the task asks for \{'num_beams': 4\}, which this model does not do"):
        sampling({"num_beams": 4}, 9)


def test_the_device_that_nobody_named() -> None:
    assert [place(name) for name in (None, "cuda:0", "cpu", "cuda")] == ["auto", "auto", "cpu", "cuda"]


def test_lm_eval(harness: pytest.MonkeyPatch, listening_checkpoint: Path, pipe: Pipeline) -> None:
    model: Any = importlib.import_module("eval.adapters.lm_eval").RWKV7Harness(str(listening_checkpoint), "cpu")
    encode = pipe.tokenizer.encode
    assert model.eot_token_id == pipe.tokenizer.end_id == 0
    pairs = [("Describe the", " picture."), ("Describe the", " red square"), ("Assistant: a", " picture.")]
    found = model.loglikelihood([Instance(pair) for pair in pairs])
    for (context, continuation), (total, greedy) in zip(pairs, found, strict=True):
        whole, before = encode(context + continuation), len(encode(context))
        (expected,) = pipe.token_likelihood(whole[:before], [whole[before:]])
        assert total == pytest.approx(expected.total, rel=1e-4)
        assert greedy == expected.greedy
    text = "User: What is in the picture?"
    (rolled,) = model.loglikelihood_rolling([Instance((text,))], disable_tqdm=True)
    assert rolled == pytest.approx(pipe.token_likelihood([0], [encode(text)])[0].total, rel=1e-5)
    assert model.loglikelihood_rolling([Instance(("",))], disable_tqdm=True) == [0.0]
    (written,) = model.generate_until([Instance((text, {"max_gen_toks": 3, "until": ["\n\n"]}))], disable_tqdm=True)
    assert written == pipe.generate(text, Sampling(max_new_tokens=3, stop=("\n\n",))).text
    assert [kind for kind, _, _ in model.cache_hook.kept] == [
        *["loglikelihood"] * 3,
        *["loglikelihood_rolling"] * 2,
        "generate_until",
    ]
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    assert model.apply_chat_template(history) == f"System: Be brief.\n\nUser: {QUESTION}\n\nAssistant:"
    assert model.tokenizer_name == str(listening_checkpoint)


def test_lmms_eval(harness: pytest.MonkeyPatch, listening_checkpoint: Path, pipe: Pipeline) -> None:
    adapter: Any = importlib.import_module("eval.adapters.lmms_eval")
    model = adapter.RWKV7Harness(str(listening_checkpoint), "cpu")
    samples = noise(1.5).numpy()
    docs = [
        {"media": [RED], "answer": "a red square"},
        {"media": [{"array": samples, "sampling_rate": RATE}], "answer": "picture"},
        {"media": None, "answer": "a"},
    ]
    model.task_dict = {"ours": {"test": docs}}
    messages = [
        question_about(QUESTION, [RED]),
        question_about(QUESTION, audio=[(samples, RATE)]),
        question_about(QUESTION),
    ]

    def visuals(doc: dict[str, Any]) -> Any:
        return doc["media"]

    options = {"max_new_tokens": 4, "until": ["\n\n"], "temperature": 0, "do_sample": False}
    requests = [Instance((QUESTION, options, visuals, number, "ours", "test")) for number in range(3)]
    expected = [pipe.chat(one, Sampling(max_new_tokens=4, stop=("\n\n",))).text for one in messages]
    assert model.generate_until(requests) == expected

    choices = (" a red square", " picture", " blue")
    asked = [Instance((QUESTION, c, visuals, number, "ours", "test")) for number in range(3) for c in choices]
    # A task with one right answer gives a function for it.
    asked.append(Instance((QUESTION, lambda doc: doc["answer"], visuals, 1, "ours", "test")))
    found = [result.text for result in model.loglikelihood(asked)]
    for number, one in enumerate(messages):
        likely = pipe.likelihood(one, [choice.strip() for choice in choices])
        for (loss, greedy), right in zip(found[3 * number : 3 * number + 3], likely, strict=True):
            assert loss == pytest.approx(-right.total, rel=1e-4)
            assert greedy == right.greedy
    assert found[-1][0] == pytest.approx(found[4][0], rel=1e-4)

    with pytest.raises(ValueError, match=r"the task shows 'video.mp4', expected a PIL picture or a sound"):
        adapter.question("What?", ["video.mp4"])
    with pytest.raises(NotImplementedError, match="several rounds"):
        model.generate_until_multi_round([])


def tasks(folder: Path, docs: list[dict[str, Any]], yaml: str, code: str = "") -> None:
    """A task of our own in the layout that both harnesses read."""
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "utils.py").write_text(code)
    (folder / "ours.yaml").write_text(yaml.replace("DOCS", str(folder / "docs.jsonl")))


def run(folder: Path, module: str, *arguments: str) -> list[dict[str, Any]]:
    """A harness as a user calls it -> its samples in order."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", module, *arguments, "--model", "mm_rwkv7", "--tasks", "ours"]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = list((folder / "out").rglob("*samples*ours*.jsonl"))
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: int(sample["doc_id"]))


LM_TASK = """
task: ours
dataset_path: json
dataset_kwargs: {data_files: {test: DOCS}}
output_type: generate_until
test_split: test
doc_to_text: "User: {{question}}\\n\\nAssistant:"
doc_to_target: answer
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_inside_lm_eval(tmp_path: Path) -> None:
    tasks(tmp_path, [{"question": "How many shapes are there?", "answer": "two"}], LM_TASK)
    (sample,) = run(tmp_path, "eval.adapters.lm_eval", "run", "--model_args", "pretrained=nano")
    prompt = "User: How many shapes are there?\n\nAssistant:"
    expected = Pipeline.from_pretrained("nano").generate(prompt, Sampling(max_new_tokens=8, stop=("\n\n",))).text
    assert sample["resps"] == [[expected]]


LMMS_TASK = """
task: ours
dataset_path: json
dataset_kwargs: {data_files: {test: DOCS}}
output_type: generate_until
test_split: test
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 8, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""

LMMS_CODE = """
from PIL import Image


def visual(doc):
    return [Image.open(doc["media"]).convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
def test_inside_lmms_eval(tmp_path: Path) -> None:
    """Through the entry point, which is there where the project is installed."""
    from mm_rwkv7.synthetic import scenes

    scene = scenes.sample(5)
    scene.image.save(tmp_path / "scene.png")
    docs = [{"media": str(tmp_path / "scene.png"), "question": q, "answer": a} for q, a, _ in scene.qa]
    tasks(tmp_path, docs, LMMS_TASK, LMMS_CODE)
    samples = run(tmp_path, "lmms_eval", "--model_args", "pretrained=nano")
    pipeline = Pipeline.from_pretrained("nano")
    expected = [pipeline.ask(doc["question"], [tmp_path / "scene.png"], sampling=Sampling(8)).text for doc in docs]
    assert [str(np.ravel(sample["filtered_resps"])[0]) for sample in samples] == expected
