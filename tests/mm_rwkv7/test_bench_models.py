"""What the benches of whole models print, at a tiny size; how long it took is not a test's business."""

import json
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.cli import main as cli
from mm_rwkv7.bench import context, train
from mm_rwkv7.bench.__main__ import as_table, main
from mm_rwkv7.bench.memory import STATUS, peak_of, resident, saved_for_backward
from mm_rwkv7.bench.models import bytes_read, gathered
from mm_rwkv7.bench.peers.operators import PEERS
from mm_rwkv7.bench.plot import draw
from mm_rwkv7.bench.readers import Attention, Reader, Recurrent
from mm_rwkv7.bench.roofline import device_peak
from mm_rwkv7.bench.shapes import SIZES, parameters, random_model, shape
from mm_rwkv7.bench.timing import Timing, sample_in_turns
from mm_rwkv7.int8 import quantise
from mm_rwkv7.ops import wkv7, wkv7_reference, wkv_path

CPU = torch.device("cpu")
TRAIN = ["train", "--shape", "tiny", "--T", "32", "--rounds", "2", "--device", "cpu"]
CONTEXT = ["context", "--shape", "tiny", "--longest", "2048", "--rounds", "2", "--device", "cpu"]


def rows_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    assert main([*arguments, "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_training_step_has_a_row_for_each_path(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of([*TRAIN, "--dtype", dtype, "--peers", str(tmp_path)], capsys)
    ours, missing = rows[: -len(PEERS)], rows[-len(PEERS) :]
    assert {row["path"] for row in ours} == {wkv_path("cpu"), "torch-chunked (cpu)", "reference loop (cpu)"}
    loop = next(row for row in ours if row["path"] == "reference loop (cpu)")
    for row in ours:
        assert row["parameters"] == parameters(random_model(shape("tiny"), torch.float32, CPU))
        assert row["tokens_per_s"]["median"] == pytest.approx(32 * 1000 / row["step_ms"]["median"], rel=1e-3)
        assert row["saved_mb"] > 0
        wanted = loop["step_ms"]["median"] / row["step_ms"]["median"]
        assert row["step_ratio_to_loop"] == pytest.approx(wanted, rel=0.01, abs=0.006)
        assert "mfu" not in row, "nobody knows a CPU's peak"
        assert row["op_ms"]["low"] <= row["op_ms"]["median"] <= row["op_ms"]["high"]
    assert missing == [{"path": name, "not_measured": "no CUDA device"} for name in PEERS]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_weights_in_one_piece_are_what_they_were(dtype: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = random_model(shape("tiny"), torch.bfloat16 if dtype == "bf16" else torch.float32, CPU)
    if dtype == "int8":
        quantise(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffer = gathered(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        inside = tensor.untyped_storage().data_ptr() == buffer.data_ptr()
        assert inside != name.startswith("emb.")
    assert bytes_read(model) <= buffer.nbytes < bytes_read(model) + 256 * len(before)


def test_a_gpu_has_the_peak_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, peak in (("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA GH1000", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert device_peak(torch.device("cuda")) == peak
    assert device_peak(CPU) is None


def test_a_path_with_another_gradient_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(r: Tensor, log_w: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        return wkv7(r, log_w * 1.1, *others)

    monkeypatch.setattr(train, "wkv7", wrong)
    monkeypatch.setattr(train, "wkv_path", lambda device: "wrong (cpu)")
    rows = rows_of(TRAIN, capsys)
    measured = [row["path"] for row in rows if "not_measured" not in row]
    assert measured == ["torch-chunked (cpu)", "reference loop (cpu)"]
    (reason,) = [str(row["not_measured"]) for row in rows if row["path"] == "wrong (cpu)"]
    assert "its gradient differs from that of torch-chunked (cpu) by" in reason


def test_contexts_stand_beside_a_llama_of_that_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "context.png"
    rows = rows_of([*CONTEXT, "--plot", str(picture)], capsys)
    assert [(row["model"], row["context"]) for row in rows] == [
        (model, context) for context in (1024, 2048) for model in ("RWKV-7 tiny", "Llama of that size")
    ]
    for one, other in (rows[:2], rows[2:]):
        assert abs(other["parameters"] / one["parameters"] - 1) < 0.05
        assert one["decode_tokens_per_s"]["median"] > 0
        assert one["prefill_tokens_per_s"] > 0
    assert rows[0]["memory_mb"] == rows[2]["memory_mb"], "a state grew"
    grown = rows[3]["memory_mb"] - rows[1]["memory_mb"]
    assert grown == pytest.approx(1024 * 2 * 2 * 128 * 4 / 1e6, abs=0.002), "keys and values of 1024 tokens"
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size < 100_000


def test_a_cache_that_does_not_fit_is_not_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(context, "available", lambda device: 3_000_000)  # one of 1024 tokens is 2.1 MB
    rows = rows_of(CONTEXT, capsys)
    measured = [(row["model"], row["context"]) for row in rows if "context" in row]
    assert measured == [("RWKV-7 tiny", 1024), ("Llama of that size", 1024), ("RWKV-7 tiny", 2048)]
    reason = "it would have to keep 0.0 GB, and 0.0 GB are free"
    assert rows[-1] == {"path": "Llama of that size at 2048", "not_measured": reason}


def test_reading_ends_with_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of([*CONTEXT, "--seconds", "0"], capsys)
    assert [row["prefill_tokens_per_s"] is None for row in rows] == [False, False, True, True]


def test_a_row_without_reading_can_be_drawn(tmp_path: Path) -> None:
    rate = {"median": 2.0, "low": 1.0, "high": 3.0}
    row = {"model": "m", "parameters": 1, "context": 1024, "decode_tokens_per_s": rate, "prefill_tokens_per_s": None}
    row |= {"memory_mb": 1.0, "weights_mb": 2.0, "dtype": "fp32", "device": "cuda", "threads": 1}
    draw([row], tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()


def test_a_long_text_is_read_in_pieces(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(["context", "--model", str(tiny_checkpoint), "--T", "5200", "--device", "cpu"], capsys)
    assert [row["tokens"] for row in rows] == [1024 * piece for piece in range(1, 6)]
    assert len({row["state_mb"] for row in rows}) == 1
    assert all(row["tokens_per_s"] > 0 and row["peak_memory_mb"] > 0 for row in rows)


@pytest.mark.parametrize("kind", [Recurrent, Attention])
def test_a_reader_goes_on_where_it_was(kind: type) -> None:
    config = shape("tiny")
    reader: Reader = (
        Recurrent(config, "tiny", torch.float32, CPU)
        if kind is Recurrent
        else Attention(config, 560256, torch.float32, CPU)
    )
    ids = torch.randint(reader.rows, (1, 12), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        whole, _ = reader.read(ids, reader.empty())
        _, memory = reader.read(ids[:, :7], reader.empty())
        parts, _ = reader.read(ids[:, 7:], memory)
        assert torch.allclose(whole, parts, atol=1e-4)
        filled = reader.filled(64, 2)
        if kind is Attention:
            assert filled.get_seq_length() == 64, "a buffer that is not full"
        assert reader.nbytes(reader.filled(64, 0)) == reader.nbytes_after(64)
        logits, _ = reader.read(ids[:, :1], filled)
        assert logits.isfinite().all()
        fresh, _ = reader.read(ids[:, :1], reader.empty())
        assert not torch.allclose(logits, fresh, atol=1e-3), "what it remembers is not read"


@pytest.mark.parametrize("name", ["0.1B", "0.4B", "1.5B"])
def test_the_llama_has_as_many_parameters_at_published_sizes(name: str) -> None:
    with torch.device("meta"):
        from mm_rwkv7.rwkv7 import RWKV7

        like = parameters(RWKV7(shape(name)))
        llama = Attention(shape(name), like, torch.bfloat16, torch.device("meta"))
    assert abs(parameters(llama.model) / like - 1) < 0.05


def test_random_models_are_of_the_stated_sizes_and_repeatable() -> None:
    one, same, other = (random_model(shape("tiny"), torch.float32, CPU, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)
    assert all(parameter.any() for parameter in one.parameters() if parameter.dim() == 2)
    assert shape("1.5B").width == 2048
    with pytest.raises(ValueError, match=r"--shape is '3B', expected one of 0\.1B"):
        shape("3B")
    assert set(SIZES) >= {"0.1B", "1.5B", "7.2B"}


def test_what_a_forward_keeps_is_counted_once() -> None:
    x = torch.randn(1000, requires_grad=True)
    layer = torch.nn.Linear(1000, 10)
    kept = saved_for_backward(lambda: (layer(x[None]) + layer(x[None])).exp(), layer)
    assert 4000 + 40 <= kept <= 4200, "x once, and what exp returned"
    inputs = [x.view(1, 10, 2, 50).detach().requires_grad_() for _ in range(6)]
    assert saved_for_backward(lambda: wkv7_reference(*inputs), layer) > 0


def fresh(size: int) -> NDArray[np.uint8]:
    """Memory from the system itself: an allocator may have some left that is in use already."""
    block = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    block[:] = 1
    return block


def test_a_peak_of_memory_is_seen_and_forgotten() -> None:
    size = 200_000_000
    high = peak_of(lambda: fresh(size), CPU)
    low = peak_of(lambda: None, CPU)
    if high is None or low is None:
        pytest.skip("this system does not tell")
    assert high - low > size / 2


@pytest.mark.skipif(not STATUS.exists(), reason="this system does not tell")
def test_memory_in_use_grows_by_what_is_written() -> None:
    before = resident()
    block = fresh(200_000_000)
    after = resident()
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(block.nbytes, rel=0.25)


def test_samples_are_taken_in_turns_after_one_that_does_not_count() -> None:
    seen: list[str] = []

    def sample(name: str, milliseconds: float) -> float:
        seen.append(name)
        return 1e6 if len(seen) <= 2 else milliseconds

    found = sample_in_turns({"a": lambda: sample("a", 4.0), "b": lambda: sample("b", 8.0)}, 3)
    assert seen == ["a", "b"] * 4
    assert found == {"a": Timing(4, 4, 4), "b": Timing(8, 8, 8)}
    assert Timing(4, 2, 8).rate(2) == Timing(500, 250, 1000)


def test_a_table_says_below_what_was_not_measured() -> None:
    rows = [{"path": "a", "x": 1}, {"path": "b", "y": {"median": 2, "low": 1, "high": 3}}]
    table = as_table([*rows, {"path": "c", "not_measured": "no CUDA device"}]).splitlines()
    assert [line.split(maxsplit=1) for line in table[:2]] == [["path", "a  b"], ["x", "1"]]
    assert table[2:] == ["y        2.00 (1.00 to 3.00)", "not measured: c (no CUDA device)"]
    long = as_table([{"path": str(i)} for i in range(9)]).splitlines()
    assert long == ["path", *map(str, range(9))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TRAIN, "--B", "0"], "--B is 0, expected 1 or more"),
        ([*TRAIN, "--dtype", "int8"], "--dtype is 'int8', expected one of fp32, bf16"),
        ([*TRAIN, "--shape", "3B"], "--shape is '3B'"),
        ([*TRAIN, "--peers", "/no/such/folder"], "--peers is /no/such/folder, expected a folder"),
        ([*CONTEXT, "--longest", "1000"], "--longest is 1000, expected 1024 or more"),
        ([*CONTEXT, "--plot", "/no/such/folder/a.png"], "--plot is /no/such/folder/a.png"),
        ([*CONTEXT, "--T", "100"], "--T is 100, expected at least 5120"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, complaint = capsys.readouterr()
    assert not out
    assert message in complaint
    assert complaint.count("\n") == 1


def test_the_command_line_passes_everything_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["wkv", "--T", "8", "--H", "1", "--N", "4", "--rounds", "2", "--json", "--peers", str(tmp_path)]
    assert cli(["bench", *small]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == ["reference", "torch-chunked", *PEERS]
    assert cli(["bench", "wkv", "--T", "0"]) == 2
