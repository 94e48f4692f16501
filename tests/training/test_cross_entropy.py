import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.cross_entropy import cross_entropy


def plain(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, l2wrap: float) -> tuple[Tensor, Tensor]:
    """-> (the loss, the loss and L2Wrap's penalty), from whole logits."""
    logits = hidden @ head.T
    loss = (weights * F.cross_entropy(logits, targets, reduction="none")).sum()
    return loss, loss + (weights * l2wrap / 2 * logits.amax(1) ** 2).sum()


@pytest.mark.parametrize("l2wrap", [0.0, 0.3])
@pytest.mark.parametrize(("n", "vocabulary", "part"), [(7, 50, 8), (1, 9, 9), (5, 33, 100), (0, 20, 7)])
def test_loss_and_gradients_are_those_of_whole_logits(
    seed: int, n: int, vocabulary: int, part: int, l2wrap: float
) -> None:
    torch.manual_seed(seed)
    hidden, head = (torch.randn(size, 16).requires_grad_() for size in (n, vocabulary))
    targets, weights = torch.randint(vocabulary, (n,)), torch.rand(n)
    expected, penalised = plain(hidden, head, targets, weights, l2wrap)
    loss, right = cross_entropy(hidden, head, targets, weights, l2wrap, part)
    assert torch.equal(right, (hidden @ head.T).argmax(1) == targets), f"seed {seed}"
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6, msg=f"seed {seed}")
    wanted = torch.autograd.grad(3 * penalised, (hidden, head))
    found = torch.autograd.grad(3 * loss, (hidden, head))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=f"seed {seed}")


def test_what_is_frozen_gets_no_gradient(seed: int) -> None:
    torch.manual_seed(seed)
    hidden, head = torch.randn(4, 8, requires_grad=True), torch.randn(20, 8)
    loss, _ = cross_entropy(hidden, head, torch.arange(4), torch.ones(4), part=6)
    loss.backward()
    assert hidden.grad is not None
    assert head.grad is None


def test_autocast_multiplies_in_bf16(seed: int) -> None:
    torch.manual_seed(seed)
    hidden, head = torch.randn(6, 64, requires_grad=True), torch.randn(40, 64, requires_grad=True)
    targets, weights = torch.randint(40, (6,)), torch.full((6,), 1 / 6)
    expected, _ = plain(hidden, head, targets, weights, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = cross_entropy(hidden, head, targets, weights, part=16)
    assert loss.dtype == torch.float32
    wanted = torch.autograd.grad(expected, (hidden, head))
    for one, other in zip(torch.autograd.grad(loss, (hidden, head)), wanted, strict=True):
        assert 0 < (one - other).norm() / other.norm() < 2e-2, f"seed {seed}"
