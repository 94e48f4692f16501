"""The kernels of decoding, and a whole step made of them, against plain torch.

B rows, D width, H heads, N head size, F hidden width.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mm_rwkv7 import cuda_decode
from mm_rwkv7.cuda_decode import CudaStepper, PooledStepper, pack
from mm_rwkv7.decode import stepper
from mm_rwkv7.int8 import Int8Linear, quantise
from mm_rwkv7.ops import decode_cuda as kernels
from mm_rwkv7.ops import wkv7_reference
from mm_rwkv7.ops.decode_cuda import Matrix, Norm, Weights
from mm_rwkv7.ops.kernel import Kernel, Launcher
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.state import State
from mm_rwkv7.state_pool import StatePool
from mm_rwkv7.weights import cast_weight
from tests.mm_rwkv7.emulation import EmulatedLauncher, Sanitizer

WIDTH, HIDDEN = 128, 512
CONFIG = RWKV7Config(
    vocab_size=50, width=WIDTH, layers=2, decay_rank=5, iclr_rank=6, value_rank=7, gate_rank=9, iclr_multiplier=1.5
)
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}  # of one kernel
TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """New memory holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert bool(torch.empty(9).isnan().all())
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def seed() -> int:
    seed = torch.seed() % 2**31
    torch.manual_seed(seed)
    print("seed", seed)  # shown where a test fails
    return seed


def error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def weights_like(dtype: torch.dtype, head_size: int = 64) -> Weights:
    """What the kernels' host code needs to know of a model without layers."""
    norm = Norm(torch.ones(1), torch.zeros(1))
    return Weights(dtype, head_size, 2.0, norm, (), norm, Matrix(torch.ones(1, 1)))


def scattered(batch: int, slots: int, device: torch.device) -> Tensor:
    """Slots for `batch` rows in any order; the last of several rows is not there."""
    chosen = torch.randperm(slots, device=device)[:batch].int()
    if batch > 1:
        chosen[-1] = -1
    return chosen


@pytest.mark.parametrize(
    ("dtype", "batch", "mixes", "wide"),
    [
        (torch.float32, 1, 6, False),
        (torch.float16, 2, 6, False),
        (torch.bfloat16, 5, 1, False),
        (torch.bfloat16, 5, 6, True),
    ],
)
def test_mix(launcher: Launcher, dtype: torch.dtype, batch: int, mixes: int, wide: bool) -> None:
    at = {"device": launcher.device}
    x, parts = 2 * torch.randn(batch, WIDTH, **at) + 1, torch.randn(3, batch, WIDTH, **at)
    parts = parts[:1].to(dtype) if wide else parts
    norm = Norm(*torch.randn(2, WIDTH, **at))
    shares = torch.rand(mixes, WIDTH, **at)
    shift = torch.randn(7, WIDTH, **at).to(dtype)
    before, slots = shift.clone(), scattered(batch, 7, launcher.device)
    stream = kernels._Stream(x, parts)
    mixed, after = kernels._mix(launcher, weights_like(dtype), stream, norm, shares, shift, slots)

    there = slots >= 0
    summed = x + parts.float().sum(0)
    y = F.layer_norm(summed.double(), (WIDTH,), norm.weight.double(), norm.bias.double())
    chosen = slots[there].long()
    expected = y[there] + (before[chosen].double() - y[there]) * shares[:, None].double()
    assert error(mixed[:, there], expected) < BOUNDS[dtype]
    assert error(shift[chosen], y[there]) < BOUNDS[dtype]
    assert error(after.x[there], summed[there]) < 1e-6
    untouched = torch.ones(7, dtype=torch.bool, **at).index_fill(0, chosen, False)
    assert torch.equal(shift[untouched], before[untouched])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalise(launcher: Launcher, dtype: torch.dtype) -> None:
    x, parts = torch.randn(3, WIDTH, device=launcher.device), torch.randn(2, 3, WIDTH, device=launcher.device)
    norm = Norm(*torch.randn(2, WIDTH, device=launcher.device))
    for stream, summed in ((kernels._Stream(x), x), (kernels._Stream(x, parts), x + parts.sum(0))):
        expected = F.layer_norm(summed.double(), (WIDTH,), norm.weight.double(), norm.bias.double())
        for result in (torch.float32, dtype):
            found = kernels._normalise(launcher, weights_like(dtype), stream, norm, result)
            assert found.dtype == result
            assert error(found, expected) < BOUNDS[result]


@pytest.mark.parametrize(
    ("head_size", "state", "products", "is_first"),
    [
        (64, torch.float32, torch.float32, True),
        (64, torch.float32, torch.bfloat16, False),
        (64, torch.float16, torch.float32, False),
        (128, torch.float32, torch.float32, False),
        (128, torch.float16, torch.float32, True),
    ],
)
def test_wkv(launcher: Launcher, head_size: int, state: torch.dtype, products: torch.dtype, is_first: bool) -> None:
    batch, heads, slots = 3, 2, 5
    width, multiplier = heads * head_size, 1.7
    at = {"device": launcher.device}
    pool = (torch.randn(slots, heads, head_size, head_size, **at) / 100).to(state)
    rkv = torch.randn(3, batch, width, **at) * torch.tensor([0.05, 0.3, 0.3], **at)[:, None, None]
    rkv = rkv.to(products)  # small enough for the group norm's eps to count
    rkv[1, 0, :head_size] = 0  # a head without a key
    low_rank = torch.randn(3 if is_first else 4, batch, width, **at).to(products)
    v_first = None if is_first else torch.randn(batch, width, **at).to(products)
    vectors = torch.randn(8, width, **at)
    before, where = pool.clone(), scattered(batch, slots, launcher.device)
    y = torch.empty(batch, width, **at)
    kernel = kernels._wkv(torch.float32, products, state, head_size)
    arguments = (pool, where, rkv, low_rank, v_first, vectors, multiplier, batch, y)
    launcher(kernel, (heads, batch, 1), arguments)

    shape = (batch, 1, heads, head_size)
    r, k, v = rkv.double()
    w0, a0, v0, k_k, k_a, r_k, weight, bias = vectors.double()
    log_w = -torch.tensor(-0.5).double().exp() * (w0 + low_rank[0].double()).sigmoid()
    iclr = (a0 + low_rank[1].double()).sigmoid()
    if v_first is not None:
        v = v.lerp(v_first.double(), (v0 + low_rank[3].double()).sigmoid())
    kappa = F.normalize((k * k_k).view(shape), dim=-1, eps=1e-12)
    k = k * (1 + (iclr - 1) * k_a)
    chosen = where[:-1].long()
    inputs = [r.view(shape), log_w.view(shape), k.view(shape), v.view(shape), -kappa]
    inputs.append(kappa * multiplier * iclr.view(shape))
    out, after = wkv7_reference(*(tensor[:-1] for tensor in inputs), before[chosen].double())
    out = F.group_norm(out.reshape(-1, width), heads, weight, bias, head_size * 1e-5)
    bonus = (r * k * r_k).view(batch, heads, head_size).sum(-1, keepdim=True) * v.view(batch, heads, head_size)
    expected = (out + bonus.view(batch, width)[:-1]) * low_rank[2, :-1].double()
    assert error(y[:-1], expected) < 1e-5
    assert error(pool[chosen], after) < (1e-6 if state == torch.float32 else 3e-4)
    untouched = torch.ones(slots, dtype=torch.bool, **at).index_fill(0, chosen, False)
    assert torch.equal(pool[untouched], before[untouched])


ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [lambda x: x, lambda x: x.relu() ** 2, lambda x: x, torch.tanh]
ACTIVATIONS.append(torch.sigmoid)


@pytest.mark.parametrize("batch", [1, 8, 9])
@pytest.mark.parametrize(("dtype", "is_int8"), [(dtype, False) for dtype in TYPES] + [(torch.bfloat16, True)])
def test_matvec(launcher: Launcher, dtype: torch.dtype, is_int8: bool, batch: int) -> None:
    at = {"device": launcher.device}
    x = torch.randn(3, batch, WIDTH, **at).to(dtype)
    plain = [torch.randn(rows, WIDTH, **at).div(WIDTH**0.5).to(dtype) for rows in (33, 96, 8, 40, 24)]
    exact = [Int8Linear(plain[0]), *plain[1:]] if is_int8 else plain
    matrices = [Matrix(m.weight, m.scales) if isinstance(m, Int8Linear) else Matrix(m) for m in exact]
    plain = [m.dequantised(torch.float64) if isinstance(m, Int8Linear) else m for m in exact]
    work = list(zip(matrices, (2, 0, 1, 0, 2), range(5), strict=True))
    products = torch.empty(129 * batch, **at)
    vectors = torch.empty(72 * batch, **at, dtype=dtype)
    kernels._matvec(launcher, x, work, products, vectors)
    found = [*products.split([33 * batch, 96 * batch]), *vectors.split([8 * batch, 40 * batch, 24 * batch])]
    for got, matrix, (_, place, kind) in zip(found, plain, work, strict=True):
        expected = ACTIVATIONS[kind](x[place].double() @ matrix.double().T)
        bound = 1e-6 if kind <= kernels.SQUARE_POSITIVE else BOUNDS[dtype]
        got = got.view(batch, -1)
        if kind == kernels.SQUARE_POSITIVE:  # a square doubles the rounding of its sum, and the bound is the sum's
            assert (got >= 0).all()
            got, expected = got.sqrt(), expected.sqrt()
        assert error(got, expected) < bound, kind


@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize(("dtype", "is_int8"), [(torch.float32, False), (torch.float16, False), (torch.float16, True)])
def test_value_product_skips_zeros(launcher: Launcher, dtype: torch.dtype, is_int8: bool, batch: int) -> None:
    """Few, no and all hidden units at work give what the dense product gives; rows of others are not read."""
    units = 1984  # of which the second block finds less than a whole slice
    value = torch.randn(WIDTH, units, device=launcher.device).to(dtype)
    linear = Int8Linear(value) if is_int8 else None
    dense = linear.dequantised(torch.float64) if linear else value.double()
    matrix = Matrix(linear.weight, linear.scales) if linear else Matrix(value)
    for share in (0.1, 0.0, 1.0):
        hidden = torch.rand(batch, units, device=launcher.device)
        hidden *= torch.rand(units, device=launcher.device) < share
        transposed = cuda_decode._transposed(matrix)
        if not is_int8:
            transposed.weight[(hidden == 0).all(0)] = torch.nan
        found = value_product(launcher, dtype, transposed, hidden)
        expected = hidden.double() @ dense.T
        assert error(found, expected) < 1e-6 if share else bool((found == 0).all())


def value_product(launcher: Launcher, dtype: torch.dtype, value: Matrix, hidden: Tensor) -> Tensor:
    out = hidden.new_empty(2, len(hidden), WIDTH)
    kernel = kernels._value(dtype, value.scales is not None, WIDTH, hidden.shape[1], 1024, min(len(hidden), 8))
    grid = (WIDTH // kernels.SPAN, 2, -(-len(hidden) // 8))
    launcher(kernel, grid, (hidden, value.weight, value.scales, out, len(hidden)))
    return out.sum(0)


def test_activations_of_wide_batches(launcher: Launcher) -> None:
    x = torch.randn(1000, device=launcher.device)
    found = x.clone()
    launcher(kernels._activation("activate", torch.float32), (3, 1, 1), (found, 250, 500, 700))
    expected = torch.cat([x[:250].tanh(), x[250:500], x[500:700].sigmoid(), x[700:]])
    assert error(found, expected) < 1e-6
    x[3] = torch.nan
    found = x.clone()
    launcher(kernels._activation("square_positive", torch.float32), (1, 1, 1), (found, 1000))
    assert torch.equal(found.isnan(), x.isnan())
    assert error(found.nan_to_num(), x.relu().square().nan_to_num()) < 1e-6


# ---- a whole step


def random_model(config: RWKV7Config = CONFIG) -> RWKV7:
    """Every parameter is random, so that none is without effect."""
    model = RWKV7(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.5 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5)
            if "ln" in name and name.endswith("weight"):
                parameter += 1
    return model.eval()


def model_pair(
    dtype: torch.dtype, device: torch.device, is_int8: bool = False, config: RWKV7Config = CONFIG
) -> tuple[RWKV7, RWKV7]:
    """A model in `dtype`, and the same numbers in fp32 on the CPU."""
    model = random_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.data = cast_weight(name, parameter, dtype)
    exact = copy.deepcopy(model).float()
    if is_int8:
        quantise(model)
        for name, module in model.named_modules():
            if isinstance(module, Int8Linear):
                exact.get_submodule(name).weight.data = module.dequantised(torch.float32)
    return model.to(device), exact


def capture(launcher: Launcher) -> Callable[[Callable[[], Tensor]], Callable[[], Tensor]]:
    """CUDA graphs on a GPU; without one a trial run as they have it, and then runs."""
    if launcher.device.type == "cuda":
        return cuda_decode.cuda_graph

    def trial(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        run()
        return run

    return trial


def step_of(model: RWKV7, launcher: Launcher) -> CudaStepper:
    weights = pack(model)
    assert weights is not None
    return CudaStepper(model, weights, launcher, capture(launcher))


@torch.no_grad()
def random_ids(batch: int) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (batch,))


@torch.no_grad()
def assert_steps_fit(
    launcher: Launcher, dtype: torch.dtype, batch: int, is_int8: bool = False, config: RWKV7Config = CONFIG
) -> None:
    """Three steps come as near to the model in fp32 as the bound, or as its modules come in `dtype`, with a margin for
    luck. The first state is random: out of an empty one a head's output may be next to nothing, and ln_x makes much of
    its rounding."""
    model, exact = model_pair(dtype, launcher.device, is_int8, config)
    step = step_of(model, launcher)
    state = by_modules = model.initial_state(batch).map(torch.randn_like)
    expected_state = state.map(lambda tensor: tensor.float().cpu())

    def assert_near(found: Tensor, modules: Tensor, expected: Tensor) -> None:
        assert error(found, expected) < max(BOUNDS[dtype], 1.5 * error(modules, expected))

    for _ in range(3):
        ids = random_ids(batch)
        x = model.embed(ids.to(launcher.device))
        hidden, state = step(x, state)
        modules, by_modules = model.hidden(x[:, None], by_modules)
        expected, expected_state = exact.hidden(exact.embed(ids)[:, None], expected_state)
        assert hidden.dtype == dtype
        assert_near(hidden, modules[:, 0], expected[:, 0])
    for layers in zip(state.layers, by_modules.layers, expected_state.layers, strict=True):
        for tensors in zip(*layers, strict=True):
            assert_near(*tensors)
    strided = torch.stack([hidden, hidden], dim=1)[:, 1]  # as the end of a prefill lies
    assert_near(step.logits(strided), model.head(modules[:, 0]), exact.head(expected[:, 0]))
    assert state.tokens_seen == 3


@pytest.mark.parametrize("batch", [1, 3, 8, 9])
def test_steps_in_fp32(launcher: Launcher, batch: int) -> None:
    assert_steps_fit(launcher, torch.float32, batch)


@pytest.mark.parametrize("batch", [3, 9])
def test_steps_in_bf16(launcher: Launcher, batch: int) -> None:
    assert_steps_fit(launcher, torch.bfloat16, batch)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_steps_in_fp16(launcher: Launcher, batch: int) -> None:
    assert_steps_fit(launcher, torch.float16, batch)


@pytest.mark.parametrize("batch", [1, pytest.param(8, marks=pytest.mark.slow), 9])
def test_steps_of_an_int8_model(launcher: Launcher, batch: int) -> None:
    assert_steps_fit(launcher, torch.bfloat16, batch, is_int8=True)


@pytest.mark.slow
def test_steps_with_heads_of_128(launcher: Launcher) -> None:
    sizes = {"decay_rank": 5, "iclr_rank": 6, "value_rank": 7, "gate_rank": 9}
    config = RWKV7Config(vocab_size=50, width=256, layers=2, head_size=128, **sizes)
    assert_steps_fit(launcher, torch.float32, 2, config=config)


@torch.no_grad()
def test_states_are_values(launcher: Launcher) -> None:
    """A state is not changed by a step, goes on where it was after others were read, and may come from elsewhere."""
    model, exact = model_pair(torch.float32, launcher.device)
    step = step_of(model, launcher)
    first, second = (exact.embed(random_ids(1)).to(launcher.device) for _ in range(2))
    _, start = exact.hidden(exact.embed(random_ids(4)[None]))
    start = start.map(lambda tensor: tensor.to(launcher.device))
    copied = start.map(Tensor.clone)
    hidden, one = step(first, start)
    kept = one.map(Tensor.clone)
    again, other = step(second, one)  # goes on from what lies in the pool
    step(second, start)
    assert torch.equal(step(first, copied)[0], hidden)
    assert torch.equal(step(second, kept)[0], again)
    assert_equal_states(one, kept)
    assert_equal_states(start, copied)
    assert (start.tokens_seen, one.tokens_seen, other.tokens_seen) == (4, 5, 6)


def assert_equal_states(one: State, other: State) -> None:
    for layer, other_layer in zip(one.layers, other.layers, strict=True):
        assert all(map(torch.equal, layer, other_layer))


@torch.no_grad()
def test_texts_join_and_leave_a_pool(launcher: Launcher) -> None:
    """Rows in any slots, in any order and number, read what each would read alone."""
    model, exact = model_pair(torch.float32, launcher.device)
    pool = StatePool(CONFIG, 6, torch.float32, launcher.device)
    weights = pack(model)
    assert weights is not None
    captured = []

    def counted(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        captured.append(run)
        return capture(launcher)(run)

    step = PooledStepper(weights, pool, launcher, counted)
    _, alone = exact.hidden(exact.embed(random_ids(3)[None]))
    states = {4: alone, **{slot: exact.initial_state().map(torch.randn_like) for slot in (1, 5)}}
    for slot, state in states.items():
        pool.put(state, slot)
    for slots in ((4,), (1, 4, 5), (5, 4, 1), (5, 1), (1, 5, 4)):
        ids = random_ids(len(slots))
        hidden = step(exact.embed(ids).to(launcher.device), slots)
        for row, slot in enumerate(slots):
            expected, states[slot] = exact.hidden(exact.embed(ids[None, row : row + 1]), states[slot])
            assert error(hidden[row], expected[0, 0]) < 1e-5
    assert len(captured) == 3  # for 1, 2 and 4 rows
    for slot, expected_state in states.items():
        taken = pool.take(slot)
        assert taken.tokens_seen == expected_state.tokens_seen
        for layer, expected_layer in zip(taken.layers, expected_state.layers, strict=True):
            assert all(error(one, other) < 1e-5 for one, other in zip(layer, expected_layer, strict=True))
    assert not any(tensor.any() for layer in pool.take(0).layers for tensor in layer)


@torch.no_grad()
def test_half_states_stay_close(launcher: Launcher) -> None:
    """fp16 storage adds a rounding (2^-11) a step, which decays as the state does."""
    model, exact = model_pair(torch.float32, launcher.device)
    pool = StatePool(CONFIG, 3, torch.float32, launcher.device, half=True)
    weights = pack(model)
    assert weights is not None
    step = PooledStepper(weights, pool, launcher, capture(launcher))
    state = exact.initial_state(3).map(torch.randn_like)
    pool.put(state, 0)
    errors = []
    for _ in range(12):
        ids = random_ids(3)
        hidden = step(exact.embed(ids).to(launcher.device), (0, 1, 2))
        expected, state = exact.hidden(exact.embed(ids)[:, None], state)
        errors.append(error(hidden, expected[:, 0]))
    assert 1e-6 < max(errors) < 2e-3, errors
    taken = pool.take(0, 3)
    assert taken.layers[0].wkv.dtype == torch.float32
    assert error(taken.layers[1].wkv, state.layers[1].wkv) < 1e-3


def test_pools_and_steps_refuse_what_does_not_fit() -> None:
    config = CONFIG
    pool = StatePool(config, 3, torch.float32, torch.device("cpu"))
    state = State.zeros(2, 2, 2, 64, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="slots 2 to 3 were asked for, the pool has 3"):
        pool.put(state, 2)
    with pytest.raises(ValueError, match="expected 2 of"):
        pool.put(State.zeros(2, 1, 4, 32, torch.float32, torch.device("cpu")), 0)
    pool.read_on([1])
    with pytest.raises(ValueError, match="have not read equally much"):
        pool.take(0, 2)
    with pytest.raises(ValueError, match="a pool of 0 slots"):
        StatePool(config, 0, torch.float32, torch.device("cpu"))
    weights = pack(random_model())
    assert weights is not None
    step = PooledStepper(weights, pool, EmulatedLauncher(), lambda run: run)
    for slots in ((1, 1), (0,), ()):
        with pytest.raises(ValueError, match="a slot of its own"):
            step(torch.zeros(2, WIDTH), slots)
    for slots in ((0, -1), (2, 3)):
        with pytest.raises(ValueError, match="the pool has 3"):
            step(torch.zeros(2, WIDTH), slots)


def test_a_model_that_the_kernels_cannot_read_is_left_alone() -> None:
    assert pack(random_model().double()) is None
    assert pack(random_model(RWKV7Config(vocab_size=9, width=64, layers=1, head_size=32))) is None
    assert pack(random_model(RWKV7Config(vocab_size=9, width=64, layers=1, ffn_width=100))) is None
    adapted = random_model()
    adapted.blocks[1].time_mix.key = torch.nn.Sequential(adapted.blocks[1].time_mix.key)
    assert pack(adapted) is None
    with_bias = random_model()
    with_bias.blocks[0].channel_mix.key = torch.nn.Linear(WIDTH, HIDDEN)
    assert pack(with_bias) is None
    askew = random_model()
    askew.head.weight.data = misplaced(askew.head.weight)
    assert pack(askew) is None


def misplaced(x: Tensor) -> Tensor:
    """The same numbers at an address that is not a multiple of 16, as in a flat buffer of many parameters."""
    place = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
    assert place.data_ptr() % 16
    return place.copy_(x.detach())


def test_vectors_may_lie_anywhere(seed: int) -> None:
    model, exact = model_pair(torch.float32, torch.device("cpu"))
    for norm in (model.ln0, model.ln_out, model.blocks[0].ln1, model.blocks[1].ln2):
        norm.weight.data, norm.bias.data = misplaced(norm.weight), misplaced(norm.bias)
    ids = random_ids(1)
    with torch.no_grad():
        expected, _ = exact.hidden(exact.embed(ids)[:, None])
        found, _ = step_of(model, EmulatedLauncher())(model.embed(ids), model.initial_state(1))
    assert error(found, expected[:, 0]) < 1e-5, f"seed {seed}"


def test_steps_in_and_out_of_inference_mode(launcher: Launcher) -> None:
    """What the first step leaves behind can be changed by the next, in either mode."""
    model, exact = model_pair(torch.float32, launcher.device)
    step, expected_state = step_of(model, launcher), exact.initial_state(1).map(torch.randn_like)
    state = expected_state.map(lambda tensor: tensor.to(launcher.device))
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.enable_grad):
        ids = random_ids(1)
        with mode():
            found, state = step(model.embed(ids.to(launcher.device)), state)
        with torch.no_grad():
            expected, expected_state = exact.hidden(exact.embed(ids)[:, None], expected_state)
        assert error(found, expected[:, 0]) < 1e-5, mode


@torch.no_grad()
def test_numbers_of_rows_share_pools(launcher: Launcher) -> None:
    """So that texts which end one after another do not leave a pool each; states that follow one another stay apart."""
    model, exact = model_pair(torch.float32, launcher.device)
    step = step_of(model, launcher)
    states: dict[int, State] = {}
    for rows in (4, 3, 4, 3, 2, 3, 4, 1):
        ids = random_ids(rows)
        before = states.get(rows, model.initial_state(rows).map(torch.randn_like))
        expected, _ = exact.hidden(exact.embed(ids)[:, None], before.map(Tensor.cpu))
        found, states[rows] = step(model.embed(ids.to(launcher.device)), before)
        assert error(found, expected[:, 0]) < 1e-5, rows
    assert sorted(step._pooled) == [1, 2, 4]


def test_a_graph_is_captured_on_the_device_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current device is another one: on its stream the capture would hold none of the launches."""
    places: list[Any] = [0]

    class Current:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            places.append(self.device)

        def __exit__(self, *_: object) -> None:
            places.pop()

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    class Capturing(Current):
        def __init__(self, graph: Graph, stream: torch.device | None = None, capture_error_mode: str = "") -> None:
            super().__init__(places[-1] if stream is None else stream)

    class Found:
        device = torch.device("cuda", 1)

    def run() -> Any:
        events.append(places[-1])
        return Found

    events: list[Any] = []
    for name, fake in (("device", Current), ("graph", Capturing), ("CUDAGraph", Graph), ("Stream", torch.device)):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    cuda_decode._capture_stream.cache_clear()
    replay = cuda_decode.cuda_graph(run)
    cuda_decode._capture_stream.cache_clear()
    assert replay() is Found
    assert events == [0, Found.device, "replay"]


def test_a_step_takes_eight_launches_a_layer() -> None:
    names: list[str] = []

    class Counter(kernels._Recorder):
        def __call__(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Any) -> None:
            names.append(kernel.name)

    kernels._launch_shapes(Counter(), torch.float16, 1)
    layer = ["mix", "matvec", "matvec", "wkv", "matvec", "mix", "matvec", "value_product"]
    assert names == ["normalise", *layer, *layer, "normalise", "matvec"]


@pytest.mark.gpu
@torch.no_grad()
def test_the_stepper_of_a_model_on_a_gpu_follows_it() -> None:
    model, exact = model_pair(torch.float32, torch.device("cuda"))
    step, ids = stepper(model), random_ids(2)
    for change in (1.0, 2.0):
        for lm in (model, exact):
            lm.blocks[0].channel_mix.value.weight *= change
        found, _ = step(model.embed(ids.cuda()), model.initial_state(2))
        assert isinstance(step._compiled, CudaStepper)
        expected, _ = exact.hidden(exact.embed(ids)[:, None])
        assert error(found, expected[:, 0]) < 1e-4
        assert error(step.logits(found), exact.head(expected[:, 0])) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitize", "dtype", "batch", "is_int8"),
    [
        ("thread", torch.float32, 3, False),
        ("thread", torch.bfloat16, 9, True),
        ("address", torch.bfloat16, 9, False),
        ("address", torch.bfloat16, 1, True),
    ],
)
@torch.no_grad()
def test_a_step_is_sound(sanitize: Sanitizer, dtype: torch.dtype, batch: int, is_int8: bool) -> None:
    """No access lacks a barrier, and none lies outside of a tensor."""
    model, _ = model_pair(dtype, torch.device("cpu"), is_int8)
    weights = pack(model)
    assert weights is not None
    pool = StatePool(CONFIG, batch + 1, dtype, torch.device("cpu"))
    slots = scattered(batch, batch + 1, torch.device("cpu"))
    launcher = EmulatedLauncher(sanitize=sanitize)
    hidden = kernels.step(launcher, weights, pool.tensors, torch.randn(batch, WIDTH), slots)
    kernels.head(launcher, weights, hidden)
