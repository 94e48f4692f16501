"""One sequence over several ranks (gloo, CPU) is that sequence on one: losses, states and every gradient."""

import secrets
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional as F

from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.state import State
from training.context_parallel import last_state, loss, span, sum_gradients

T = 23  # spans of different lengths


def random_lm(seed: int) -> RWKV7:
    torch.manual_seed(seed)
    lm = RWKV7(RWKV7Config(20, 32, 3, head_size=16, decay_rank=4, iclr_rank=4, value_rank=4, gate_rank=4))
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            parameter.normal_(std=0.4 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5)
            if "ln" in name and name.endswith("weight"):
                parameter += 1  # else the norms make much of a rounding
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


def on_a_rank(rank: int, world: int, seed: int, frozen: bool, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    lm, ids, targets, state = drawn(seed, frozen)
    shares = []
    for _ in range(2):  # the second sequence begins with what the first one left
        share, after = loss(lm, span(ids), span(targets), state)
        share.backward()
        dist.all_reduce(total := share.detach().clone())
        shares.append(total)
        state = last_state(after)
    sum_gradients(lm.parameters())
    with torch.no_grad():
        quiet, _ = loss(lm, span(ids), span(targets), state)
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


def test_a_sequence_shorter_than_the_ranks_is_refused(tmp_path: Path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="a sequence of 0 steps is too short for 1 ranks"):
            span(torch.zeros(1, 0))
    finally:
        dist.destroy_process_group()
