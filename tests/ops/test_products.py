"""The fast forms of the Vandermonde and Cauchy products against their definitions, and their gradients against differences."""

import sys

import pytest
import torch

from s4nd.ops import blocks, cauchy, vandermonde
from s4nd.ops.cauchy import cauchy_definition, cauchy_torch
from s4nd.ops.vandermonde import vandermonde_definition, vandermonde_torch

F64 = torch.float64


def poles(H: int, N: int, dtype=F64):
    """Decaying and rotating: (H, N, 2) with Re < 0."""
    return torch.stack([-torch.rand(H, N, dtype=dtype), 3 * torch.randn(H, N, dtype=dtype)], dim=-1)


@pytest.mark.parametrize("L", [1, 2, 3, 7, 64, 100])
def test_vandermonde_by_doubling_equals_definition(L):
    torch.manual_seed(0)
    v, x = torch.randn(2, 3, 5, 2, dtype=F64), poles(3, 5)
    expected = vandermonde_definition(v, x, L)
    torch.testing.assert_close(vandermonde_torch(v, x, L), expected, rtol=0, atol=1e-13 * expected.abs().max())


def test_vandermonde_by_doubling_is_as_exact_as_the_definition_in_float32():
    """Slow poles over a long axis: squaring powers would lose L eps; both forms stay at the rounding of l x."""
    torch.manual_seed(0)
    v, x = torch.randn(1, 4, 8, 2), poles(4, 8, torch.float32) * 1e-3
    exact = vandermonde_definition(v.double(), x.double(), 4096)
    error = (vandermonde_torch(v, x, 4096) - exact).abs().max()
    assert error <= 2 * (vandermonde_definition(v, x, 4096) - exact).abs().max()


@pytest.mark.parametrize("form", [vandermonde_torch, vandermonde_definition])
@pytest.mark.parametrize("L", [1, 6])
def test_vandermonde_gradients_of_first_and_second_order(form, L):
    torch.manual_seed(0)
    v, x = torch.randn(2, 3, 4, 2, dtype=F64, requires_grad=True), poles(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, x: form(v, x, L), (v, x))
    assert torch.autograd.gradgradcheck(lambda v, x: form(v, x, L), (v, x))


def cauchy_arguments(M: int):
    """Rows, columns and poles of 3 heads, and M nodes."""
    torch.manual_seed(0)
    u, v = torch.randn(3, 3, 5, 2, dtype=F64), torch.randn(2, 3, 5, 2, dtype=F64)
    z = torch.stack([0.1 + torch.rand(M, dtype=F64), torch.randn(M, dtype=F64)], dim=-1)
    return u.requires_grad_(), v.requires_grad_(), poles(3, 5).requires_grad_(), z


@pytest.mark.parametrize("elements", [1, 2**17])  # a block for each head, one block
@pytest.mark.parametrize("M", [1, 4, 9])
def test_cauchy_in_blocks_equals_definition(monkeypatch, M, elements):
    monkeypatch.setattr(blocks, "ELEMENTS", elements)
    arguments = cauchy_arguments(M)
    expected = cauchy_definition(*arguments).detach()
    torch.testing.assert_close(cauchy_torch(*arguments), expected, rtol=0, atol=1e-13 * expected.abs().max())


@pytest.mark.parametrize("form", [cauchy_torch, cauchy_definition])
def test_cauchy_gradients_of_first_and_second_order(form):
    """In the rows, the columns and the poles: the nodes are constants."""
    *leaves, z = cauchy_arguments(2)
    assert torch.autograd.gradcheck(lambda u, v, w: form(u, v, w, z), leaves)
    assert torch.autograd.gradgradcheck(lambda u, v, w: form(u, v, w, z), leaves, fast_mode=True)


def test_unknown_backend_is_refused_with_the_known_ones():
    v, x = torch.randn(1, 1, 2, 2), poles(1, 2)
    with pytest.raises(ValueError, match=r"backend must be one of \('auto', 'torch', 'keops'\), got 'cuda'"):
        vandermonde(v, x, 4, backend="cuda")


def test_keops_that_cannot_run_raises_with_the_reason(monkeypatch):
    """A backend that was asked for is never replaced in silence."""
    from s4nd.ops import _keops

    monkeypatch.setitem(sys.modules, "pykeops.torch", None)
    _keops._lazy_tensor.cache_clear()
    with pytest.raises(RuntimeError, match=r"backend='keops' cannot run here.*pip install"):
        cauchy(torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2), poles(1, 2), torch.ones(1, 2), backend="keops")
    _keops._lazy_tensor.cache_clear()


@pytest.mark.filterwarnings("default")  # of pykeops
def test_keops_equals_definition_with_gradients():
    pytest.importorskip("pykeops", reason="needs the extra: pip install 's4nd[keops]'")
    u, v, x, z = cauchy_arguments(7)
    for form, definition, leaves, last in (
        (vandermonde, vandermonde_definition, (u, x), 7),
        (cauchy, cauchy_definition, (u, v, x), z),
    ):
        expected = definition(*leaves, last)
        probe = torch.randn_like(expected)
        got = form(*leaves, last, backend="keops")
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * expected.detach().abs().max())
        for g, e in zip(*(torch.autograd.grad((y * probe).sum(), leaves) for y in (got, expected)), strict=True):
            torch.testing.assert_close(g, e, rtol=0, atol=1e-11 * e.abs().max())
