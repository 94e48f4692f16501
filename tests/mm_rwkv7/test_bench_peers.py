"""Peers: what is found is compared with ours before it is timed, and what is not found or is wrong says so."""

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mm_rwkv7.bench.peers import Unmeasured, WrongPeerError, checkout, rwkv_package
from mm_rwkv7.bench.peers.fla_folder import write_fla
from mm_rwkv7.bench.peers.language import language_peers
from mm_rwkv7.bench.peers.llama_cpp import LlamaCpp, expected_parameters
from mm_rwkv7.bench.peers.operators import PEERS, fla, operator_peers, rwkv_lm, wind
from mm_rwkv7.bench.shapes import parameters, random_model, shape
from mm_rwkv7.ops import wkv7_reference
from mm_rwkv7.rwkv7 import RWKV7

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> RWKV7:
    return random_model(shape("tiny"), torch.float32, CPU)


class Clamped:
    """What RWKV-LM's kernels are called with and write to, computed by the reference; `scale` breaks its decay."""

    def __init__(self, scale: float = -0.6065306597) -> None:
        self.scale = scale

    def _y(self, inputs: tuple[Tensor, ...]) -> Tensor:
        r, w, *others = (x.float() for x in inputs)
        return wkv7_reference(r, self.scale * torch.sigmoid(w), *others)[0]

    def forward(self, *tensors: Tensor) -> None:
        *inputs, y, states, removed = tensors
        B, T, H, N = y.shape
        assert states.shape == (B, H, T // 16, N, N)
        assert states.dtype == removed.dtype == torch.float32
        assert all(x.dtype == torch.bfloat16 and x.is_contiguous() for x in (*inputs, y))
        y.copy_(self._y(tuple(inputs)))

    def backward(self, *tensors: Tensor) -> None:
        inputs, d_y, gradients = tensors[:6], tensors[6], tensors[9:]
        leaves = [x.detach().float().requires_grad_() for x in inputs]
        with torch.enable_grad():
            found = torch.autograd.grad(self._y(tuple(leaves)), leaves, d_y.float())
        for out, gradient in zip(gradients, found, strict=True):
            out.copy_(gradient)


def windy(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The formula of wind_rwkv's README."""
    r, w, k, v, a, b = (x.float() for x in (r, w, k, v, a, b))
    s = v.new_zeros(*v[:, 0].shape, v.shape[-1])
    y = []
    for t in range(w.shape[1]):
        s = s * torch.exp(-torch.exp(w[:, t, :, None])) + s @ a[:, t, :, :, None] * b[:, t, :, None]
        s = s + v[:, t, :, :, None] * k[:, t, :, None]
        y.append((s @ r[:, t, :, :, None])[..., 0])
    return torch.stack(y, 1).bfloat16(), s


def logged(*inputs: Tensor, scale: float, **_: object) -> tuple[Tensor, None]:
    """What fla's docstring says of its inputs."""
    r, *others = (x.float() for x in inputs)
    return wkv7_reference(r * scale, *others)[0].bfloat16(), None


@pytest.mark.parametrize("peer", [rwkv_lm("clamped", Clamped()), wind(windy), fla(logged)], ids=lambda peer: peer.name)
def test_inputs_and_gradients_are_translated_for_each_kernel(peer: object) -> None:
    peer.check(CPU, 8)


@pytest.mark.parametrize(
    "peer",
    [
        rwkv_lm("clamped", Clamped(-0.5)),
        wind(lambda r, w, *others: windy(r, w + 0.2, *others)),
        wind(lambda *inputs: (windy(*inputs)[0] * torch.nan, None)),
        fla(lambda *inputs, scale, **_: logged(*inputs, scale=scale * 1.1)),
    ],
)
def test_a_kernel_that_computes_something_else_is_refused(peer: object) -> None:
    with pytest.raises(WrongPeerError, match="differs from the reference by"):
        peer.check(CPU, 8)


def test_a_wrong_gradient_is_refused() -> None:
    kernels = Clamped()
    right = kernels.backward

    def wrong(*tensors: Tensor) -> None:
        right(*tensors)
        tensors[-1].mul_(1.2)

    kernels.backward = wrong  # type: ignore[method-assign]
    with pytest.raises(WrongPeerError, match="its gradient of b differs"):
        rwkv_lm("clamped", kernels).check(CPU, 8)


def test_without_a_cuda_device_no_kernel_is_measured() -> None:
    found, missing = operator_peers(None, CPU, 64)
    assert not found
    assert missing == [Unmeasured(name, "no CUDA device") for name in PEERS]


def test_the_package_computes_our_logits(model: RWKV7) -> None:
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    with language_peers(model, ["fp32", "bf16", "int8"], None) as (found, missing):
        assert [(peer.name, peer.dtype) for peer in found] == [("pip rwkv fp32", "fp32"), ("pip rwkv bf16", "bf16")]
        assert not missing
        for peer, size in zip(found, (4, 2), strict=True):
            assert peer.weight_bytes == size * parameters(model)
            assert peer.decode(2) > 0
            assert peer.prefill(3) > 0


def test_a_package_with_other_weights_is_refused(model: RWKV7, tmp_path: Path) -> None:
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    rwkv_package.write_blinkdl(model, tmp_path / "model.pth")
    other = random_model(model.config, torch.float32, CPU)
    with torch.no_grad():
        other.blocks[1].time_mix.k_a.mul_(1.01)
    peer = rwkv_package.RWKVPackage(tmp_path / "model.pth", "fp32", CPU)
    peer.check(model)
    with pytest.raises(WrongPeerError, match="read at once differ from ours by"):
        peer.check(other)


def test_a_folder_without_checkouts_says_what_is_missing(model: RWKV7, tmp_path: Path) -> None:
    with language_peers(model, ["int8"], tmp_path) as (found, missing):
        assert not found
        (row,) = [peer.row() for peer in missing]
    assert row["path"] == "llama.cpp int8"
    assert "convert_hf_to_gguf.py" in str(row["not_measured"])


@pytest.fixture
def llama_checkout(tmp_path: Path) -> Callable[[int], Path]:
    """A checkout whose converter notes what it read, and whose bench says that it ran a number of parameters."""

    def make(model_parameters: int) -> Path:
        home = tmp_path / "llama"
        (home / "build" / "bin").mkdir(parents=True)
        (home / "convert_hf_to_gguf.py").write_text(
            "import json, pathlib, sys\n"
            "from safetensors import safe_open\n"
            "source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[sys.argv.index('--outfile') + 1])\n"
            "assert json.loads((source / 'config.json').read_text())['architectures'] == ['RWKV7ForCausalLM']\n"
            "assert (source / 'rwkv_vocab_v20230424.txt').exists()\n"
            "out.write_bytes((source / 'model.safetensors').read_bytes())\n"
        )
        bench = home / "build" / "bin" / "llama-bench"
        row = {"model_n_params": model_parameters, "samples_ns": [6_000_000]}
        bench.write_text(f"#!{sys.executable}\nprint({json.dumps([row])!r})\n")
        bench.chmod(bench.stat().st_mode | stat.S_IXUSR)
        return tmp_path

    return make


def test_llama_cpp_is_timed_by_its_own_bench(model: RWKV7, llama_checkout: Callable[[int], Path]) -> None:
    folder = llama_checkout(expected_parameters(parameters(model), model.config))
    with language_peers(model, ["int8"], folder) as (found, missing):
        assert not missing
        (peer,) = found
        assert peer.name == "llama.cpp Q8_0"
        assert peer.decode(3) == pytest.approx(2)
        assert peer.prefill(3) == pytest.approx(6)


def test_llama_cpp_that_runs_another_model_is_refused(model: RWKV7, llama_checkout: Callable[[int], Path]) -> None:
    with language_peers(model, ["fp32"], llama_checkout(parameters(model))) as (found, missing):
        assert [peer.name for peer in found] in ([], ["pip rwkv fp32"])
        assert "it runs 560256 parameters, expected 564480" in missing[-1].reason


def test_a_bench_that_fails_says_so(tmp_path: Path) -> None:
    bench = tmp_path / "llama-bench"
    bench.write_text("#!/bin/sh\necho one >&2\necho cannot load the file >&2\nexit 1\n")
    bench.chmod(0o755)
    with pytest.raises(WrongPeerError, match="llama-bench failed: cannot load the file"):
        LlamaCpp(bench, bench, "fp32", 1, 0).decode(1)


def test_the_folder_for_the_converter_opens_as_the_same_model(model: RWKV7, tmp_path: Path) -> None:
    write_fla(model, tmp_path)
    again = RWKV7.from_pretrained(tmp_path, device="cpu", dtype="fp32")
    assert again.config == model.config
    for (name, tensor), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def test_a_checkout_is_known_by_a_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "any name" / "src").mkdir(parents=True)
    (tmp_path / "any name" / "src" / "marker.cu").touch()
    assert checkout(tmp_path, "src/marker.cu") == tmp_path / "any name"
    assert checkout(tmp_path / "any name", "src/marker.cu") == tmp_path / "any name"
    with pytest.raises(WrongPeerError, match=r"has a src/other\.cu"):
        checkout(tmp_path, "src/other.cu")
