"""The step of decoding against the model itself: B rows, D width, V vocabulary."""

import ctypes
import dataclasses
import math
import os
import random
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mm_rwkv7.cpu_decode import CpuStepper
from mm_rwkv7.decode import ModuleStepper, stepper
from mm_rwkv7.int8 import Int8Linear, quantise
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.ops import compiler
from mm_rwkv7.ops.compiler import NoKernelError
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.state import LayerState, State

CONFIGS = {
    "odd sizes": RWKV7Config(77, 60, 2, 20, 5, 1, 7, 33, ffn_width=130, iclr_multiplier=2.0),
    "head 16": RWKV7Config(40, 32, 3, 16, 5, 6, 7, 8),
    "head 64": RWKV7Config(300, 192, 3, 64, 32, 16, 8, 70),
    "head 128": RWKV7Config(300, 256, 2, 128, 64, 64, 32, 160),
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_model(config: RWKV7Config, seed: int) -> RWKV7:
    """Every parameter is random, so that none is without effect."""
    generator = torch.Generator().manual_seed(seed)
    model = RWKV7(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.5 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5, generator=generator)
            if "ln" in name and name.endswith("weight"):
                parameter += 1
    return model.eval()


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


def state_error(found: State, expected: State) -> float:
    pairs = zip(found.layers, expected.layers, strict=True)
    return max(error(one, other) for ours, theirs in pairs for one, other in zip(ours, theirs, strict=True))


def exact_weights(model: RWKV7) -> dict[str, Tensor]:
    """What the model multiplies with, in fp64."""
    found = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            found[f"{name}.weight"] = module.dequantised(torch.float64)
    return found


def norm(x: Tensor, p: dict[str, Tensor], name: str, eps: float = 1e-5) -> Tensor:
    """Over the last dimension; weight and bias in its shape."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    shape = x.shape[1:]
    return scaled * p[f"{name}.weight"].view(shape) + p[f"{name}.bias"].view(shape)


def exact_step(p: dict[str, Tensor], config: RWKV7Config, x: Tensor, state: State) -> tuple[Tensor, State]:
    """The step as the paper has it, in fp64: x (B, D)."""
    B, heads = len(x), (len(x), config.heads, config.head_size)
    x, v_first, layers = norm(x, p, "ln0"), torch.empty(0), []
    for i, (S, before, ffn_before) in enumerate(state.layers):
        q = {n.removeprefix(f"blocks.{i}."): t for n, t in p.items() if n.startswith(f"blocks.{i}.")}
        m = {n.removeprefix("time_mix."): t for n, t in q.items()}
        z = norm(x, q, "ln1")
        r_, w_, k_, v_, a_, g_ = (z + (before - z) * m[f"x_{name}"] for name in "rwkvag")
        r, k, v = r_ @ m["receptance.weight"].T, k_ @ m["key.weight"].T, v_ @ m["value.weight"].T
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(m["w0"] + torch.tanh(w_ @ m["w1"]) @ m["w2"]))
        a = torch.sigmoid(m["a0"] + a_ @ m["a1"] @ m["a2"])
        g = torch.sigmoid(g_ @ m["g1"]) @ m["g2"]
        v_first = v if i == 0 else v_first
        v = v if i == 0 else v + (v_first - v) * torch.sigmoid(m["v0"] + v_ @ m["v1"] @ m["v2"])
        kappa = torch.nn.functional.normalize((k * m["k_k"]).view(heads), dim=-1)
        k = k * (1 + (a - 1) * m["k_a"])
        r, w, k, v, a = (t.view(heads) for t in (r, w, k, v, a))
        removed = torch.einsum("bhvk,bhk->bhv", S, kappa)
        S = S * w[:, :, None] - torch.einsum("bhv,bhk->bhvk", removed, kappa * a * config.iclr_multiplier)
        S = S + torch.einsum("bhv,bhk->bhvk", v, k)
        y = norm(torch.einsum("bhvk,bhk->bhv", S, r), m, "ln_x", config.head_size * 1e-5)
        y = y + (r * k * m["r_k"]).sum(-1, keepdim=True) * v
        x = x + (y.view(B, -1) * g) @ m["output.weight"].T
        u = norm(x, q, "ln2")
        h = (u + (ffn_before - u) * q["channel_mix.x_k"]) @ q["channel_mix.key.weight"].T
        x = x + torch.relu(h).square() @ q["channel_mix.value.weight"].T
        layers.append(LayerState(S, z, u))
    return norm(x, p, "ln_out"), State(tuple(layers), state.tokens_seen + 1)


def walk(model: RWKV7, rows: int, steps: int, seed: int, count: int = 1) -> float:
    """The largest error of hidden, state and logits over some steps, each from the state that the step before left. The
    first is random: out of an empty one a head's output may be next to nothing, and ln_x makes much of its rounding."""
    generator = torch.Generator().manual_seed(seed)
    step, p = stepper(model), exact_weights(model)
    state = model.initial_state(rows).map(lambda x: torch.randn(x.shape, generator=generator).to(x.dtype))
    right = state.map(Tensor.double)
    worst = 0.0
    for _ in range(steps):
        x = model.embed(torch.randint(model.config.vocab_size, (rows,), generator=generator))
        torch.set_num_threads(count)
        hidden, state = step(x, state)
        torch.set_num_threads(1)
        wanted, right = exact_step(p, model.config, x.double(), right)
        assert hidden.dtype == model.emb.weight.dtype
        read = wanted.to(hidden.dtype)
        logits, expected = step.logits(read), read.double() @ p["head.weight"].T
        assert logits.dtype == torch.float32
        assert error(logits, expected) < 1e-5
        worst = max(worst, error(hidden, wanted), state_error(state, right))
    assert state.tokens_seen == steps
    return worst


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (1, 2), (2, 2), (3, 1), (5, 2), (64, 2)])
@torch.no_grad()
def test_the_step_is_the_paper_s(name: str, rows: int, count: int) -> None:
    seed = random.randrange(10**6)
    model = random_model(CONFIGS[name], seed)
    assert isinstance(CpuStepper.of(model), CpuStepper)
    assert walk(model, rows, 64 if rows == 1 else 8, seed, count) < 1e-5, f"seed {seed}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows", [1, 4])
@torch.no_grad()
def test_half_weights_are_read_exactly(name: str, dtype: torch.dtype, rows: int) -> None:
    """Vectors and state are fp32, so the step equals the exact one with the same weights."""
    seed = random.randrange(10**6)
    model = random_model(CONFIGS[name], seed).to(dtype)
    model.blocks[0].time_mix.w0.data = model.blocks[0].time_mix.w0.data.float()  # as a load leaves it
    rounding = torch.finfo(dtype).eps  # of what goes in and comes out
    assert walk(model, rows, 8, seed) < rounding, f"seed {seed}"


@torch.no_grad()
def test_half_numbers_of_every_size_are_read() -> None:
    """All 65,536 of fp16 but infinities and NaN, subnormals included, as weights of the head."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    numbers = bits[bits.isfinite()]
    model = random_model(RWKV7Config(len(numbers) // 32, 32, 1, 16), 0).half()
    model.head.weight.data = numbers.view(-1, 32).contiguous()
    units = torch.eye(32).half()
    for rows in (3, 8):  # one by one, and several together
        found = torch.cat([stepper(model).logits(units[i : i + rows]) for i in range(0, 32, rows)])
        assert torch.equal(found, numbers.view(-1, 32).float().T)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_int8_is_its_dequantised_weights(name: str, rows: int, dtype: torch.dtype) -> None:
    seed = random.randrange(10**6)
    model = random_model(CONFIGS[name], seed).to(dtype)
    quantise(model)
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert walk(model, rows, 8, seed) < tolerance, f"seed {seed}"


@torch.no_grad()
def test_int8_is_near_what_it_was() -> None:
    seed = random.randrange(10**6)
    torch.manual_seed(seed)
    weight = torch.randn(50, 200) * torch.logspace(-9, 3, 50)[:, None]
    weight[7] = 0
    linear = Int8Linear(weight)
    assert linear.weight.shape == (50, 256)
    found = linear.dequantised(torch.float32)
    groups = torch.nn.functional.pad(weight, (0, 56)).view(50, 4, 64).abs().amax(-1)
    limit = torch.repeat_interleave(groups / 127 * 0.51 + groups * 2**-8, 64, dim=1)[:, :200]
    assert ((found - weight).abs() <= limit).all(), f"seed {seed}"
    assert not found[7].any()
    x = torch.randn(2, 3, 200)
    assert error(linear(x), x @ found.T) < 1e-5


def test_a_quantised_model_loads_strictly_and_survives_casts() -> None:
    model = random_model(CONFIGS["head 64"], 1)
    quantise(model)
    ids = torch.arange(5)[None]
    other = random_model(CONFIGS["head 64"], 2)
    quantise(other)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(ids)[0], model(ids)[0])
    scales = model.head.scales.clone()
    model.half().float()
    assert torch.equal(model.head.scales, scales)


@pytest.mark.parametrize("rows", [1, 3, 64, 65])
@torch.no_grad()
def test_a_given_state_is_never_changed(rows: int) -> None:
    model = random_model(CONFIGS["head 64"], 3)
    state = model(torch.randint(300, (rows, 5)))[1].map(Tensor.detach)
    kept = state.map(Tensor.clone)
    x = model.embed(torch.arange(rows))
    step = stepper(model)
    once, _ = step(x, state)
    again, after = step(x, state)
    assert state_error(state, kept) == 0
    assert torch.equal(once, again)
    assert after.rows(torch.tensor([0])).batch == 1
    assert error(once, ModuleStepper(model)(x, state)[0]) < 1e-5


@torch.no_grad()
def test_rows_are_each_on_their_own() -> None:
    model = random_model(CONFIGS["head 64"], 4)
    state = model(torch.randint(300, (8, 5)))[1]
    x = model.embed(torch.arange(8))
    step = stepper(model)
    together, after = step(x, state)
    for row in range(8):
        alone, alone_after = step(x[row : row + 1], state.rows(torch.tensor([row])))
        assert error(together[row : row + 1], alone) < 1e-6
        assert state_error(after.rows(torch.tensor([row])), alone_after) < 1e-6


def test_changes_of_the_weights_are_seen() -> None:
    model = random_model(CONFIGS["head 64"], 5)
    step = stepper(model)

    def assert_current() -> None:
        x, state = model.embed(torch.tensor([3])), model.initial_state()
        expected = ModuleStepper(model)(x, state)[0]
        tolerance = 1e-5 if x.dtype == torch.float32 else 4e-2
        assert error(step(x, state)[0], expected) < tolerance
        assert error(step.logits(expected), ModuleStepper(model).logits(expected)) < tolerance

    assert_current()
    with torch.no_grad():
        model.blocks[1].channel_mix.value.weight.mul_(-2)
        model.blocks[0].time_mix.x_k.add_(1)
    assert_current()
    model.load_state_dict(random_model(CONFIGS["head 64"], 6).state_dict(), assign=True)
    assert_current()
    model.blocks[0].time_mix.key.weight = torch.nn.Parameter(torch.randn(192, 192) / 14)
    assert_current()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        model.to(dtype)
        assert_current()
    hidden = step(model.embed(torch.tensor([3])), model.initial_state())[0]
    model.head.weight.data = torch.randn_like(model.head.weight)  # between a step and its logits
    assert error(step.logits(hidden), ModuleStepper(model).logits(hidden)) < 1e-5


def test_a_state_that_does_not_fit_is_refused() -> None:
    model = random_model(CONFIGS["head 16"], 7)
    with pytest.raises(ValueError, match="state has 3 layers"):
        stepper(model)(model.embed(torch.arange(2)), model.initial_state(1))


def test_adapters_take_the_portable_path() -> None:
    model = random_model(CONFIGS["head 16"], 8)
    key = model.blocks[0].time_mix.key
    model.blocks[0].time_mix.key = torch.nn.Sequential(key, torch.nn.Tanh())  # type: ignore[assignment]
    assert CpuStepper.of(model) is None
    x, state = model.embed(torch.arange(2)), model.initial_state(2)
    assert torch.equal(stepper(model)(x, state)[0], ModuleStepper(model)(x, state)[0])


def test_without_a_compiler_the_modules_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(name: str) -> object:
        raise NoKernelError("no C compiler was found")

    monkeypatch.setattr("mm_rwkv7.ops.decode.load", no_compiler)
    model = random_model(CONFIGS["head 16"], 9)
    x, state = model.embed(torch.arange(2)), model.initial_state(2)
    step = stepper(model)
    with pytest.warns(UserWarning, match="no C compiler"):
        found, _ = step(x, state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(step(x, state)[0], found)
    assert torch.equal(found, ModuleStepper(model)(x, state)[0])


def test_a_forked_process_has_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    model = random_model(CONFIGS["head 64"], 10)
    x, state = model.embed(torch.tensor([3])), model.initial_state()
    step = stepper(model)
    expected = step(x, state)[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(step(x, state)[0], expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_answers_are_those_of_the_modules(tiny_model: MMRWKV7, tiny_checkpoint: Path) -> None:
    ours, modules = Pipeline(tiny_model), Pipeline(tiny_model)
    modules.__dict__["_stepper"] = ModuleStepper(tiny_model.lm)
    for question in ("What is in the picture?", "a red square", "Describe"):
        found, expected = ours.ask(question), modules.ask(question)
        assert found.text == expected.text
        assert state_error(found.state, expected.state) < 1e-4
    rounded = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="int8")
    assert isinstance(rounded.model.lm.head, Int8Linear)
    assert rounded.ask("What is in the picture?").usage.completion_tokens == 8


def test_the_kernel_is_compiled_for_whoever_runs_it() -> None:
    assert compiler.load("decode") is compiler.load("decode")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@torch.no_grad()
def test_a_process_may_fork_while_another_thread_decodes() -> None:
    """As a web server does whose data loader or worker starts while somebody is being answered."""
    torch.set_num_threads(2)
    model = random_model(CONFIGS["head 64"], 11)
    x, state = model.embed(torch.tensor([3])), model.initial_state()
    step = stepper(model)
    expected = step(x, state)[0]
    done = threading.Event()

    def decode() -> None:
        while not done.is_set():
            step(x, state)

    other = threading.Thread(target=decode)
    other.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(0 if torch.equal(step(x, state)[0], expected) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        done.set()
        other.join()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@torch.no_grad()
def test_signals_are_not_for_the_kernel_s_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    another = shutil.copy(compiler.load("decode")._name, tmp_path / "another.so")  # has not started a thread
    monkeypatch.setattr("mm_rwkv7.ops.decode.load", lambda _: ctypes.CDLL(another))
    model = random_model(CONFIGS["head 64"], 12)
    step = CpuStepper.of(model)
    assert step is not None
    x, state = model.embed(torch.tensor([3])), model.initial_state()
    torch.set_num_threads(3)
    before = _masks()
    step(x, state)
    started = [mask for thread, mask in _masks().items() if thread not in before]
    assert any(mask >> (signal.SIGINT - 1) & 1 for mask in started)  # torch's own may have started too


def _masks() -> dict[str, int]:
    """The signals that each thread of this process blocks."""
    masks = {}
    for path in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # another test's thread has just ended
            masks[path.name] = int((path / "status").read_text().split("SigBlk:")[1].split()[0], 16)
    return masks


@torch.no_grad()
def test_several_threads_decode_at_once() -> None:
    torch.set_num_threads(2)
    model = random_model(CONFIGS["head 64"], 13)
    x, state = model.embed(torch.tensor([3])), model.initial_state()
    step = stepper(model)
    expected = step(x, state)[0]
    found: list[Tensor] = []
    callers = [threading.Thread(target=lambda: found.extend(step(x, state)[0] for _ in range(50))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 200
    assert all(torch.equal(hidden, expected) for hidden in found)


@pytest.mark.parametrize("rows", [0, 65])
@torch.no_grad()
def test_any_number_of_rows(rows: int) -> None:
    model = random_model(CONFIGS["head 64"], 14)
    x, state = model.embed(torch.arange(rows)), model.initial_state(rows)
    hidden, after = stepper(model)(x, state)
    assert hidden.shape == (rows, 192)
    assert after.batch == rows
    assert stepper(model).logits(hidden).shape == (rows, 300)
    compiled = CpuStepper.of(model)
    assert compiled is not None
    with pytest.raises(ValueError, match=f"{rows} rows, expected 1 to 64"):
        compiled(x, state)
    with pytest.raises(ValueError, match=f"{rows} rows, expected 1 to 64"):
        compiled.logits(hidden)


def test_what_would_be_read_beyond_its_end_is_refused() -> None:
    model = random_model(CONFIGS["head 64"], 15)
    x, state = model.embed(torch.tensor([3])), model.initial_state()
    step = stepper(model)
    for wrong in (x[:, :100], torch.zeros(1, 200), torch.zeros(1, 192, device="meta"), torch.zeros(192)):
        with pytest.raises(ValueError, match="expected"):
            step(wrong, state)
    with pytest.raises(ValueError, match=r"\(1, 100\).*expected \(B, 192\)"):
        step.logits(x[:, :100])
    short = state.layers[1]._replace(att_shift=torch.zeros(1, 100))
    elsewhere = state.layers[1]._replace(wkv=state.layers[1].wkv.to("meta"))
    for layer in (short, elsewhere):
        with pytest.raises(ValueError, match="expected"):
            step(x, dataclasses.replace(state, layers=(state.layers[0], layer, state.layers[2])))


@torch.no_grad()
def test_a_matrix_of_another_size_is_left_to_the_modules() -> None:
    model = random_model(CONFIGS["head 64"], 16)
    model.blocks[1].channel_mix.key.weight = torch.nn.Parameter(torch.zeros(100, 192))
    assert CpuStepper.of(model) is None


@torch.no_grad()
def test_hooks_are_called() -> None:
    model = random_model(CONFIGS["head 64"], 17)
    x, state = model.embed(torch.tensor([3])), model.initial_state()
    model.blocks[1].channel_mix.register_forward_hook(lambda _, __, output: (output[0] * 0, output[1]))
    step = stepper(model)
    assert torch.equal(step(x, state)[0], ModuleStepper(model)(x, state)[0])


@torch.no_grad()
def test_weights_in_other_numbers_at_the_same_place_are_seen() -> None:
    model = random_model(CONFIGS["head 64"], 18).bfloat16()
    step = stepper(model)

    def assert_current() -> None:
        x, state = model.embed(torch.tensor([3])), model.initial_state()
        assert error(step(x, state)[0], ModuleStepper(model)(x, state)[0]) < 4e-2

    assert_current()
    for parameter in model.parameters():  # what an allocator may do that gives freed memory out again
        parameter.data = parameter.data.view(torch.int16).copy_(parameter.half().view(torch.int16)).view(torch.float16)
    assert_current()


@torch.no_grad()
def test_nan_is_not_swallowed() -> None:
    model = random_model(CONFIGS["head 64"], 19)
    model.blocks[2].channel_mix.key.weight[5, 7] = math.nan
    x, state = model.embed(torch.tensor([3])), model.initial_state()
    assert stepper(model)(x, state)[0].isnan().all()
