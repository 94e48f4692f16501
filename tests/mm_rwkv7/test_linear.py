"""Matrix products against fp64 and against what torch does by itself."""

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from mm_rwkv7.ops import linear, squared_relu


def pairs(seed: int) -> list[tuple[Tensor, Tensor]]:
    """(x, weight) of several shapes and strides."""
    torch.manual_seed(seed)
    rows = (torch.randn(70), torch.randn(1, 70), torch.randn(2, 5, 70), torch.randn(70, 3).T, torch.randn(0, 70))
    more = (torch.randn(1, 70).expand(4, 70), torch.randn(3, 140)[:, ::2], torch.randn(5, 2, 70).transpose(0, 1))
    matrices = (torch.randn(37, 70), torch.randn(70, 37).T, torch.randn(0, 70), torch.randn(1, 70).expand(9, 70))
    return [(x, weight) for x in (*rows, *more) for weight in matrices]


def assert_near(found: Tensor, expected: Tensor, seed: int) -> None:
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected.double(), rtol=1e-5, atol=2e-5), f"seed {seed}"


@torch.no_grad()
def test_products(seed: int) -> None:
    for x, weight in pairs(seed):
        assert_near(linear(x, weight), x.double() @ weight.double().T, seed)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_gradients(wanted: tuple[bool, bool], seed: int) -> None:
    for given in pairs(seed):
        x, weight = (a.detach().requires_grad_(wants) for a, wants in zip(given, wanted, strict=True))
        exact_x, exact_weight = (a.detach().double().requires_grad_() for a in given)
        y, exact = linear(x, weight), exact_x @ exact_weight.T
        d_y = torch.randn(y.shape)
        leaves = [(x, exact_x), (weight, exact_weight)]
        leaves = [pair for pair, wants in zip(leaves, wanted, strict=True) if wants]
        found = torch.autograd.grad(y, [a for a, _ in leaves], d_y)
        expected = torch.autograd.grad(exact, [b for _, b in leaves], d_y.double())
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, seed)


def test_gradients_of_gradients(seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(5, 7, requires_grad=True), torch.randn(3, 7, requires_grad=True)

    def second(product: object, x: Tensor, weight: Tensor) -> list[Tensor]:
        assert callable(product)
        first = torch.autograd.grad(product(x, weight).pow(3).sum(), (x, weight), create_graph=True)
        return list(torch.autograd.grad(sum(d.square().sum() for d in first), (x, weight)))

    exact = [a.detach().double().requires_grad_() for a in (x, weight)]
    for found, expected in zip(second(linear, x, weight), second(F.linear, *exact), strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-5, f"seed {seed}"


def test_the_gradient_of_a_sum_and_of_a_parameter_seen_through_a_view(seed: int) -> None:
    """As of low-rank projections, which are stored the other way round."""
    torch.manual_seed(seed)
    x, weight = torch.randn(2, 5, 7), torch.nn.Parameter(torch.randn(7, 3))
    linear(x, weight.T).sum().backward()
    assert weight.grad is not None
    assert_near(weight.grad, x.flatten(0, 1).sum(0)[:, None].expand(7, 3), seed)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """torch parses its own sources at the first derivative, and CPython 3.11's parser fails where garbage is collected
    meanwhile (python/cpython#106905)."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("gradients", [True, False])
def test_forward_derivatives_and_transforms(gradients: bool, seed: int, uncollected: None) -> None:
    torch.manual_seed(seed)
    x, weight, tangent = torch.randn(4, 8), torch.randn(6, 8), torch.randn(4, 8)
    with torch.set_grad_enabled(gradients):
        derived = torch.func.jvp(lambda given: linear(given, weight), (x,), (tangent,))[1]
        assert_near(derived, tangent @ weight.T, seed)
        with forward_ad.dual_level():
            dual = linear(forward_ad.make_dual(x, tangent), weight)
            assert_near(forward_ad.unpack_dual(dual).tangent, tangent @ weight.T, seed)
        mapped = torch.vmap(lambda given: linear(given, weight))(torch.stack([x, tangent]))
        assert_near(mapped, torch.stack([x, tangent]) @ weight.T, seed)


@torch.no_grad()
def test_what_is_exported_is_torch_alone() -> None:
    class Product(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return linear(x, weight)

    program = torch.export.export(Product(), (torch.randn(4, 8), torch.randn(6, 8)))
    assert "mkldnn" not in str(program)


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(RuntimeError, match="4x8 and 9x6"):
        linear(torch.zeros(4, 8), torch.zeros(6, 9))


def test_squared_relu() -> None:
    x = torch.randn(4, 6)
    assert torch.equal(squared_relu(x.clone()), x.clamp(min=0) ** 2)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(squared_relu(y).sum(), y)
    assert torch.allclose(gradient, 2 * x.clamp(min=0))
