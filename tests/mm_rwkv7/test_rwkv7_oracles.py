"""RWKV-7 against things that share nothing with its code: a plain NumPy forward, and a trained model with the
logits that another implementation gave.

B batch, T time, D width, H heads, N head size, V vocabulary.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def numpy_rwkv7(p: dict[str, Array], config: RWKV7Config, ids: list[int]) -> Array:
    """ids (T) -> logits (T, V): one token after another, one head after another, in fp64."""
    D, N = config.width, config.head_size
    S = np.zeros((config.layers, D // N, N, N))
    att_before = np.zeros((config.layers, D))
    ffn_before = np.zeros((config.layers, D))
    logits = []
    for token in ids:
        x = norm(p["emb.weight"][token], p["ln0.weight"], p["ln0.bias"])
        v_first = np.zeros(D)
        for i in range(config.layers):
            q = {
                name.removeprefix(f"blocks.{i}."): value for name, value in p.items() if name.startswith(f"blocks.{i}.")
            }
            m = {name.removeprefix("time_mix."): value for name, value in q.items()}
            z = norm(x, q["ln1.weight"], q["ln1.bias"])
            xr, xw, xk, xv, xa, xg = (z + (att_before[i] - z) * m[f"x_{c}"] for c in "rwkvag")
            att_before[i] = z
            r, k, v = m["receptance.weight"] @ xr, m["key.weight"] @ xk, m["value.weight"] @ xv
            w = np.exp(-np.exp(-0.5) * sigmoid(m["w0"] + np.tanh(xw @ m["w1"]) @ m["w2"]))
            a = sigmoid(m["a0"] + xa @ m["a1"] @ m["a2"])
            g = sigmoid(xg @ m["g1"]) @ m["g2"]
            if i == 0:
                v_first = v
            else:
                v = v + (v_first - v) * sigmoid(m["v0"] + xv @ m["v1"] @ m["v2"])
            removal = k * m["k_k"]
            k = k * (1 + (a - 1) * m["k_a"])
            y = np.zeros(D)
            for h in range(D // N):
                c = slice(h * N, h * N + N)
                kk = removal[c] / max(np.linalg.norm(removal[c]), 1e-12)
                S[i, h] = (
                    S[i, h] * w[c] - np.outer(S[i, h] @ kk, kk * a[c] * config.iclr_multiplier) + np.outer(v[c], k[c])
                )
                y[c] = norm(S[i, h] @ r[c], m["ln_x.weight"][c], m["ln_x.bias"][c], eps=N * 1e-5)
                y[c] += (r[c] * k[c] * m["r_k"][h]).sum() * v[c]
            x = x + m["output.weight"] @ (y * g)
            z = norm(x, q["ln2.weight"], q["ln2.bias"])
            hidden = q["channel_mix.key.weight"] @ (z + (ffn_before[i] - z) * q["channel_mix.x_k"])
            ffn_before[i] = z
            x = x + q["channel_mix.value.weight"] @ np.maximum(hidden, 0) ** 2
        logits.append(p["head.weight"] @ norm(x, p["ln_out.weight"], p["ln_out.bias"]))
    return np.array(logits)


@torch.no_grad()
@pytest.mark.parametrize("multiplier", [1.0, 2.0])
def test_logits_equal_those_of_a_plain_numpy_forward(multiplier: float) -> None:
    torch.manual_seed(3)
    config = RWKV7Config(50, 48, 3, 16, 5, 6, 7, 8, ffn_width=100, iclr_multiplier=multiplier)
    model = RWKV7(config)
    for name, parameter in model.named_parameters():
        parameter.normal_(std=0.5 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5)
        if "ln" in name and name.endswith("weight"):
            parameter += 1
    ids = torch.randint(50, (40,)).tolist()
    expected = numpy_rwkv7({name: p.double().numpy() for name, p in model.named_parameters()}, config, ids)
    found = model(torch.tensor([ids]))[0][0].double().numpy()
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5


@pytest.fixture(scope="module")
def trained(data_dir: Path) -> RWKV7:
    return RWKV7.from_pretrained(data_dir / "rwkv7/tiny-rwkv-7v0-834K-FP32.bin", "cpu", "fp32")


@torch.no_grad()
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_trained_model_gives_the_recorded_logits(trained: RWKV7, data_dir: Path, pieces: int) -> None:
    recorded = (data_dir / "rwkv7/expected-logits-7v0-834K.bin").read_bytes()
    expected = torch.from_numpy(np.frombuffer(recorded, "<f4").copy())
    state = None
    for piece in torch.tensor([list(b'"in')]).tensor_split(pieces, dim=1):
        logits, state = trained(piece, state)
    found = logits[0, -1]
    assert (found - expected).norm() / expected.norm() < 1e-5
    assert found.argmax() == expected.argmax()
