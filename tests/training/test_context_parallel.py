"""One sequence over several ranks (gloo, CPU) is that sequence on one: losses, states and every gradient."""

import secrets
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional as F

from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.state import State
from training.context_parallel import cut, hidden, last_state
from training.truncated import summed_loss

T = 23  # spans of different lengths


def random_lm(seed: int) -> RWKV7:
    torch.manual_seed(seed)
    lm = RWKV7(RWKV7Config(20, 32, 3, head_size=16, decay_rank=4, iclr_rank=4, value_rank=4, gate_rank=4))
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            parameter.normal_(std=0.4 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5)
            if "ln" in name and name.endswith("weight"):
                parameter += 1  # else the norms make much of a rounding
    for block in lm.blocks:
        block.time_mix.ln_x.eps = 10  # the first steps of a sequence are normalised from next to nothing otherwise
    return lm


def drawn(seed: int, frozen: bool) -> tuple[RWKV7, Tensor, Tensor, State]:
    """A model, some of whose parts may be frozen, ids, targets, and what was read before them."""
    lm = random_lm(seed)
    ids = torch.randint(20, (2, T + 1))
    targets = ids[:, 1:].clone()
    targets[:, :9] = -100  # the first rank of three has nothing to say
    with torch.no_grad():
        _, state = lm(torch.randint(20, (2, 5)))
    if frozen:
        for part in (lm.emb, lm.ln0, lm.blocks[0], lm.blocks[1].time_mix):
            part.requires_grad_(False)
    return lm, ids[:, :-1], targets, state


def span(sequence: Tensor) -> Tensor:
    return sequence.tensor_split(dist.get_world_size(), dim=1)[dist.get_rank()]


def on_a_rank(rank: int, world: int, seed: int, frozen: bool, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    lm, ids, targets, state = drawn(seed, frozen)
    shares = []
    for _ in range(2):  # the second sequence begins with what the first one left
        output, after = hidden(lm, lm.embed(span(ids)), state)
        share = summed_loss(lm, output, span(targets)) / (targets != -100).sum()
        share.backward()
        dist.all_reduce(total := share.detach().clone())
        shares.append(total)
        state = last_state(after)
    for parameter in lm.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
    with torch.no_grad():
        quiet = summed_loss(lm, hidden(lm, lm.embed(span(ids)), state)[0], span(targets)) / (targets != -100).sum()
        dist.all_reduce(quiet)
    gradients = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    torch.save([[*shares, quiet], gradients, [list(layer) for layer in state.layers]], f"{folder}/{rank}")
    dist.destroy_process_group()


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).norm() <= 1e-5 * wanted.norm() + 1e-7)


@pytest.mark.parametrize(("world", "frozen"), [(2, False), pytest.param(3, True, marks=pytest.mark.slow)])
def test_ranks_together_are_one(world: int, frozen: bool, tmp_path: Path) -> None:
    seed = secrets.randbits(31)
    mp.spawn(on_a_rank, (world, seed, frozen, str(tmp_path)), nprocs=world)

    lm, ids, targets, state = drawn(seed, frozen)
    losses = []
    for last in (False, False, True):
        logits, after = lm(ids, state)
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100))
        if not last:
            losses[-1].backward()
            state = after.map(Tensor.detach)
    wanted = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    for rank in range(world):
        found, gradients, layers = torch.load(tmp_path / str(rank), weights_only=True)
        for one, other in zip(found, losses, strict=True):
            assert close(one, other.detach()), f"seed {seed}: losses {found}, on one rank {losses}"
        assert gradients.keys() == wanted.keys()
        far = [name for name in wanted if not close(gradients[name], wanted[name])]
        assert not far, f"seed {seed}, rank {rank}: gradients of {far}"
        for layer, expected in zip(layers, state.layers, strict=True):
            assert all(map(close, layer, expected)), f"seed {seed}, rank {rank}: states"


def random_ends(seed: int, time: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    inside = torch.randint(1, time, (5,), generator=generator).unique()
    return torch.tensor([0, *inside.tolist(), time], dtype=torch.int32)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_spans_are_a_pack_and_say_where_sequences_go_on(ranks: int) -> None:
    seed = secrets.randbits(31)
    ends = random_ends(seed, T)
    pack: dict[str, Any] = {
        "ids": torch.arange(T)[None],
        "targets": torch.arange(T)[None] + 1,
        "cu_seqlens": ends,
        "lane": 4,
    }
    spans = [cut(pack, rank, ranks) for rank in range(ranks)]
    for name in ("ids", "targets"):
        assert torch.cat([span[name] for span in spans], dim=1).equal(pack[name])
    assert sum(span["tokens"] for span in spans) == T
    assert max(span["tokens"] for span in spans) - min(span["tokens"] for span in spans) <= 1
    begun, found = 0, []
    for rank, span in enumerate(spans):
        local = span["cu_seqlens"]
        assert local[-1] == span["tokens"] == span["ids"].shape[1]
        assert local.dtype == torch.int32
        assert (local.diff() > 0).all()
        assert span["continued"] == (rank > 0 and begun not in ends.tolist()), f"seed {seed}"
        found += [begun + int(end) for end in local[1 if span["continued"] else 0 : -1]]
        begun += span["tokens"]
    assert found == ends[:-1].tolist(), f"seed {seed}"
    assert all(span["lane"] == 4 for span in spans)


def test_a_pack_shorter_than_the_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="a pack of 1 tokens is too short for 2 processes"):
        cut({"ids": torch.zeros(1, 1)}, 0, 2)


def drawn_pack(seed: int) -> tuple[RWKV7, Tensor]:
    return random_lm(seed), torch.randint(20, (1, 2 * T))


def packed_on_a_rank(rank: int, seed: int, ends: list[int], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    lm, ids = drawn_pack(seed)
    pack = cut({"ids": ids, "targets": ids, "cu_seqlens": torch.tensor(ends)}, rank, 2)
    output, _ = hidden(lm, lm.embed(pack["ids"]), None, None, pack["cu_seqlens"], pack["continued"])
    share = summed_loss(lm, output, pack["targets"])
    share.backward()
    dist.all_reduce(total := share.detach().clone())
    gradients = {}
    for name, parameter in lm.named_parameters():
        gradients[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(gradients[name])
    torch.save([total, gradients], f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize("apart", [False, True], ids=["cut inside a sequence", "cut between two"])
def test_sequences_of_a_pack_know_nothing_of_one_another(apart: bool, tmp_path: Path) -> None:
    seed = secrets.randbits(31)
    ends = sorted({*random_ends(seed, 2 * T).tolist()} - {T} | ({T} if apart else set()))
    mp.spawn(packed_on_a_rank, (seed, ends, str(tmp_path)), nprocs=2)
    lm, ids = drawn_pack(seed)
    output, _ = lm.hidden(lm.embed(ids), cu_seqlens=torch.tensor(ends))
    wanted = summed_loss(lm, output, ids)
    wanted.backward()
    for rank in range(2):
        found, gradients = torch.load(tmp_path / str(rank), weights_only=True)
        assert close(found, wanted.detach()), f"seed {seed}"
        far = [n for n, p in lm.named_parameters() if p.grad is None or not close(gradients[n], p.grad)]
        assert not far, f"seed {seed}, rank {rank}: gradients of {far}"
