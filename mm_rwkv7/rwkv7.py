"""RWKV-7 "Goose" (x070), as published in arXiv 2503.14456 and in the World / Pile / G1 checkpoints.

Letters: B batch, T time, D width, H heads, N head size (D = H * N), V vocabulary, S sequences that lie in one row.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_rwkv7.int8 import quantise
from mm_rwkv7.interop.files import read
from mm_rwkv7.interop.language import language_model
from mm_rwkv7.interop.sizes import sizes
from mm_rwkv7.linear import Linear
from mm_rwkv7.ops import count_sequences, linear, squared_relu, wkv7
from mm_rwkv7.sources import locate
from mm_rwkv7.state import LayerState, State
from mm_rwkv7.token_shift import Neighbours, Sequences, token_shift
from mm_rwkv7.typed import build
from mm_rwkv7.weights import INT8, choose_device, choose_dtype, load_strictly

DECAY_FLOOR = -math.exp(-0.5)  # the strongest log-decay that the sigmoid can reach


@dataclass(frozen=True)
class RWKV7Config:
    """Sizes of one RWKV-7. The ranks belong to the low-rank projections of decay, in-context learning rate,
    value residual and gate; a checkpoint's own shapes decide them, never a formula.

    `iclr_multiplier` scales the in-context learning rate inside the state update: 1 as published; 2 lets an
    eigenvalue of the transition reach -1, for state tracking.
    """

    vocab_size: int
    width: int
    layers: int
    head_size: int = 64
    decay_rank: int = 64
    iclr_rank: int = 64
    value_rank: int = 32
    gate_rank: int = 128
    ffn_width: int | None = None
    iclr_multiplier: float = 1.0

    def __post_init__(self) -> None:
        ranks = ("decay_rank", "iclr_rank", "value_rank", "gate_rank")
        for name in ("vocab_size", "width", "layers", "head_size", *ranks, "ffn_width"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}, expected at least 1")
        if self.width % self.head_size:
            raise ValueError(f"width {self.width} is not a multiple of head_size {self.head_size}")

    @classmethod
    def of(
        cls, shapes: Mapping[str, Sequence[int]], source: object = "the model", spell: Callable[[str], str] = str
    ) -> "RWKV7Config":
        """The sizes of a model whose parameters have these shapes. A ValueError lists what tells a size and is missing
        everywhere, as `spell` names it."""
        return cls(**sizes(shapes, source, spell))

    @property
    def heads(self) -> int:
        return self.width // self.head_size

    @property
    def hidden(self) -> int:
        """Width of the channel mix."""
        return self.ffn_width or 4 * self.width


class TimeMix(nn.Module):
    """The attention-free token mixer: a matrix-valued state per head, updated by a generalised delta rule."""

    x_r: nn.Parameter
    x_w: nn.Parameter
    x_k: nn.Parameter
    x_v: nn.Parameter
    x_a: nn.Parameter
    x_g: nn.Parameter
    w0: nn.Parameter
    w1: nn.Parameter
    w2: nn.Parameter
    a0: nn.Parameter
    a1: nn.Parameter
    a2: nn.Parameter
    v0: nn.Parameter
    v1: nn.Parameter
    v2: nn.Parameter
    g1: nn.Parameter
    g2: nn.Parameter
    k_k: nn.Parameter
    k_a: nn.Parameter

    def __init__(self, config: RWKV7Config, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        D, H, N = config.width, config.heads, config.head_size
        for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "k_k", "k_a"):
            self.register_parameter(name, nn.Parameter(torch.empty(D)))
        ranks = {"w": config.decay_rank, "a": config.iclr_rank, "g": config.gate_rank}
        if layer > 0:
            self.v0 = nn.Parameter(torch.empty(D))
            ranks["v"] = config.value_rank
        for name, rank in ranks.items():
            self.register_parameter(f"{name}1", nn.Parameter(torch.empty(D, rank)))
            self.register_parameter(f"{name}2", nn.Parameter(torch.empty(rank, D)))
        self.r_k = nn.Parameter(torch.empty(H, N))
        self.receptance = Linear(D, D)
        self.key = Linear(D, D)
        self.value = Linear(D, D)
        self.output = Linear(D, D)
        self.ln_x = nn.GroupNorm(H, D, eps=N * 1e-5)

    def forward(
        self, x: Tensor, state: LayerState, v_first: Tensor | None, neighbours: Neighbours | Sequences | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, T, D) -> (out (B, T, D), wkv state, token to carry, the first layer's values)."""
        B, T, D = x.shape
        heads = (B, T, self.config.heads, self.config.head_size)
        dx, carried = token_shift(x, state.att_shift, neighbours)
        mixes = torch.stack([self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g])
        xr, xw, xk, xv, xa, xg = torch.addcmul(x, dx, mixes.to(x.dtype)[:, None, None]).unbind()

        r = self.receptance(xr)
        k = self.key(xk)
        v = self.value(xv)
        a0, k_k, k_a, r_k = (vector.to(r.dtype) for vector in (self.a0, self.k_k, self.k_a, self.r_k))
        log_w = self.log_decay(xw)
        iclr = torch.sigmoid(a0 + linear(linear(xa, self.a1.T), self.a2.T))
        gate = linear(torch.sigmoid(linear(xg, self.g1.T)), self.g2.T)
        if v_first is None:
            v_first = v
        else:
            v = torch.lerp(v, v_first, torch.sigmoid(self.v0.to(r.dtype) + linear(linear(xv, self.v1.T), self.v2.T)))
        kappa = F.normalize((k * k_k).view(heads).float(), dim=-1, eps=1e-12)
        k = k * torch.addcmul(1 - k_a, iclr, k_a)  # k (1 + (iclr - 1) k_a)
        b = kappa * (iclr * self.config.iclr_multiplier).view(heads)
        if isinstance(neighbours, Neighbours):
            log_w, k = (t.masked_fill(~neighbours.mask, 0) for t in (log_w, k))
            b = b.masked_fill(~neighbours.mask[..., None], 0)

        r, log_w, k, v = (t.view(heads) for t in (r, log_w, k, v))
        ends = neighbours.cu_seqlens if isinstance(neighbours, Sequences) else None
        y, wkv = wkv7(r, log_w, k, v, -kappa.to(r.dtype), b.to(r.dtype), state.wkv, ends)
        y = self.ln_x(y.reshape(B * T, D)).view(B, T, D)
        bonus = (r * k * r_k).sum(-1, keepdim=True) * v
        return self.output((y + bonus.view(B, T, D)) * gate), wkv, carried, v_first

    def log_decay(self, xw: Tensor) -> Tensor:
        """The token as the decay sees it, mixed with the one before (B, T, D) -> log_w (B, T, D) fp32."""
        decay = self.w0.float() + linear(torch.tanh(linear(xw, self.w1.T)), self.w2.T).float()
        return DECAY_FLOOR * torch.sigmoid(decay)


class ChannelMix(nn.Module):
    """Squared-ReLU feed-forward on the shifted token; no receptance gate."""

    def __init__(self, config: RWKV7Config) -> None:
        super().__init__()
        self.x_k = nn.Parameter(torch.empty(config.width))
        self.key = Linear(config.width, config.hidden)
        self.value = Linear(config.hidden, config.width)

    def forward(self, x: Tensor, carried: Tensor, neighbours: Neighbours | Sequences | None) -> tuple[Tensor, Tensor]:
        """x (B, T, D) -> (out (B, T, D), token to carry)."""
        dx, carried = token_shift(x, carried, neighbours)
        k = squared_relu(self.key(torch.addcmul(x, dx, self.x_k.to(x.dtype))))
        return self.value(k), carried


class Block(nn.Module):
    def __init__(self, config: RWKV7Config, layer: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.width)
        self.ln2 = nn.LayerNorm(config.width)
        self.time_mix = TimeMix(config, layer)
        self.channel_mix = ChannelMix(config)

    def forward(
        self, x: Tensor, state: LayerState, v_first: Tensor | None, neighbours: Neighbours | Sequences | None
    ) -> tuple[Tensor, LayerState, Tensor]:
        mixed, wkv, att_shift, v_first = self.time_mix(self.ln1(x), state, v_first, neighbours)
        x = x + mixed
        mixed, ffn_shift = self.channel_mix(self.ln2(x), state.ffn_shift, neighbours)
        return x + mixed, LayerState(wkv, att_shift, ffn_shift), v_first


class RWKV7(nn.Module):
    """The language model: `logits, state = model(ids, state)`.

    A whole sequence, pieces of it, or one token at a time give the same logits; the state is a value that the
    caller holds, so memory does not grow with the text.
    """

    def __init__(self, config: RWKV7Config) -> None:
        super().__init__()
        self.config = config
        self.emb = nn.Embedding(config.vocab_size, config.width)
        self.ln0 = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.ln_out = nn.LayerNorm(config.width)
        self.head = Linear(config.width, config.vocab_size)

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str], device: str = "auto", dtype: str = "auto") -> "RWKV7":
        """The language model of any recognised checkpoint (native, for transformers, BlinkDL, flash-linear-attention,
        rwkv.cpp), alone or inside a model that sees: "nano", "hf:owner/repo", "hf:owner/repo/file", a folder or file.
        """
        path = locate(model)
        where = choose_device(device)
        number = choose_dtype(dtype, where)
        stored = read(path)
        found = language_model(stored)
        if found.sizes is None:
            config = RWKV7Config.of({name: t.shape for name, t in found.tensors.items()}, path, found.spell)
        else:
            config = build(RWKV7Config, found.sizes, f"{path}: lm")
        with torch.device("meta"):
            lm = cls(config)
        load_strictly(lm, found.tensors, path, number, where, found.spell)
        if dtype == INT8:
            quantise(lm)
        return lm.eval()

    def forward(
        self,
        ids: Tensor | None = None,
        state: State | None = None,
        *,
        x: Tensor | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """ids (B, T) integers, or x (B, T, D) from `embed`; mask (B, T), False at padded steps, which change
        nothing; cu_seqlens (S + 1,) as `hidden` takes them. -> (logits (B, T, V) fp32, state after the last real
        token)."""
        if ids is not None and x is None:
            x = self.embed(ids)
        elif x is None or ids is not None:
            raise ValueError("expected either ids or x, got both or neither")
        hidden, state = self.hidden(x, state, mask, cu_seqlens)
        return self.head(hidden).float(), state

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, D), before ln0, so that features of other modalities can be spliced in."""
        x: Tensor = self.emb(ids)
        return x

    def hidden(
        self, x: Tensor, state: State | None = None, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """x (B, T, D) -> (what the head reads (B, T, D), state).

        cu_seqlens (S + 1,): integers from 0 to T. B is 1, S sequences lie one after another and know nothing of each
        other, any of them may be empty, and the states are those of S rows. On a GPU its values are not looked at.
        """
        if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != self.config.width:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, T >= 1, {self.config.width})")
        rows, time = x.shape[:2]
        neighbours: Neighbours | Sequences | None = None
        if cu_seqlens is not None:
            if mask is not None:
                raise ValueError("expected either mask or cu_seqlens, got both")
            rows = count_sequences(cu_seqlens, rows, time)
            neighbours = Sequences.of(cu_seqlens.to(x.device), time)
        elif mask is not None:
            if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
                raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}, expected torch.bool {tuple(x.shape[:2])}")
            neighbours = Neighbours.of(mask)
        if state is None:
            state = self.initial_state(rows)
        else:
            self.check_state(state, rows)
        x = self.ln0(x)
        v_first = None
        layers = []
        for block, layer_state in zip(self.blocks, state.layers, strict=True):
            x, layer_state, v_first = block(x, layer_state, v_first, neighbours)
            layers.append(layer_state)
        return self.ln_out(x), State(tuple(layers), state.tokens_seen + x.shape[1], model=state.model)

    def check_state(self, state: State, batch: int) -> None:
        """ValueError unless `state` is one of `batch` rows of a model of this size."""
        config = self.config
        expected = (batch, config.heads, config.head_size, config.head_size)
        shapes = {tuple(layer.wkv.shape) for layer in state.layers}
        if len(state.layers) != config.layers or shapes != {expected}:
            raise ValueError(
                f"state has {len(state.layers)} layers of {sorted(shapes)}, expected {config.layers} of {expected}"
            )
        shifts = {tuple(shift.shape) for layer in state.layers for shift in (layer.att_shift, layer.ffn_shift)}
        if shifts != {(batch, config.width)}:
            raise ValueError(f"state has token shifts of {sorted(shifts)}, expected {(batch, config.width)}")

    def initial_state(self, batch: int = 1) -> State:
        """The empty state: nothing read yet."""
        config, like = self.config, self.emb.weight
        return State.zeros(config.layers, batch, config.heads, config.head_size, like.dtype, like.device)
