"""Against the `rwkv` package, BlinkDL's own inference code: checkpoints of the published widths and ranks, their depth
and vocabulary cut, opened by both."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mm_rwkv7.rwkv7 import RWKV7

MODELS = [  # width, ranks, tokens read
    pytest.param(128, (8, 16, 8, 24), 60, id="small"),
    pytest.param(768, (64, 64, 32, 128), 300, id="768", marks=pytest.mark.slow),
    pytest.param(1024, (64, 64, 32, 128), 300, id="1024", marks=pytest.mark.slow),
    pytest.param(2048, (96, 96, 64, 256), 300, id="2048", marks=pytest.mark.slow),
]
ROWS, ANSWER = 4096, 32


@pytest.fixture(scope="module")
def peer() -> Iterator[ModuleType]:
    """The package, which reads the environment when it is imported, and sets how torch computes for everybody."""
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    settings = (
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "allow_tf32"),
        (torch.backends.cuda.matmul, "allow_tf32"),
    )
    before = [getattr(where, name) for where, name in settings]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RWKV_V7_ON", "1"), ("RWKV_JIT_ON", "0"), ("RWKV_CUDA_ON", "0")):
            patch.setenv(name, value)
        import rwkv.model

        for (where, name), value in zip(settings, before, strict=True):
            setattr(where, name, value)
        yield rwkv.model


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
@pytest.mark.parametrize(("width", "ranks", "tokens"), MODELS)
def test_logits_and_continuations_equal_those_of_the_package(
    peer: ModuleType,
    make_blinkdl: Callable[..., dict[str, Tensor]],
    tmp_path: Path,
    width: int,
    ranks: tuple[int, int, int, int],
    tokens: int,
) -> None:
    path = tmp_path / "model.pth"
    torch.save(make_blinkdl(width, 2, ROWS, 64, ranks, torch.bfloat16, seed=width), path)
    theirs = peer.RWKV(str(path.with_suffix("")), strategy="cpu fp32")
    ours = RWKV7.from_pretrained(path, device="cpu", dtype="fp32")
    ids = torch.randint(ROWS, (tokens,), generator=torch.Generator().manual_seed(1)).tolist()
    expected, their_state = theirs.forward(ids, None, full_output=True)

    for pieces in ([tokens], [1, 16, 30, tokens - 47], [1] * tokens):
        state, logits = None, []
        for piece in torch.tensor([ids]).split(pieces, dim=1):
            part, state = ours(piece, state)
            logits.append(part[0])
        assert distance(torch.cat(logits), expected) < 1e-4, f"in {len(pieces)} pieces"

    token, their_token = int(logits[-1][-1].argmax()), int(expected[-1].argmax())
    answer, their_answer = [token], [their_token]
    for _ in range(ANSWER):
        found, state = ours(torch.tensor([[token]]), state)
        token = int(found[0, -1].argmax())
        answer.append(token)
        wanted, their_state = theirs.forward([their_token], their_state)
        their_token = int(wanted.argmax())
        their_answer.append(their_token)
    assert answer == their_answer
