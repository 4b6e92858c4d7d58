"""The fast forms of the Vandermonde product against its definition, and their gradients against differences."""

import pytest
import torch

from s4nd.ops import blocks, vandermonde
from s4nd.ops.vandermonde import vandermonde_definition, vandermonde_torch

F64 = torch.float64


def poles(H: int, N: int, dtype=F64):
    """Decaying and rotating: (H, N, 2) with Re < 0."""
    return torch.stack([-torch.rand(H, N, dtype=dtype), 3 * torch.randn(H, N, dtype=dtype)], dim=-1)


@pytest.mark.parametrize("elements", [1, 2**17])  # a block for each head, one block
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("J", [1, 6])
@pytest.mark.parametrize("L", [1, 2, 3, 7, 64, 100, 401])
def test_vandermonde_by_doubling_equals_definition(monkeypatch, L, J, centre, elements):
    monkeypatch.setattr(blocks, "ELEMENTS", elements)
    torch.manual_seed(0)
    w, x = torch.randn(J, 3, 5, 2, dtype=F64), poles(3, 5)
    expected = vandermonde_definition(w, x, L, centre)
    torch.testing.assert_close(vandermonde_torch(w, x, L, centre), expected, rtol=0, atol=1e-13 * expected.abs().max())


@pytest.mark.parametrize("centre", [False, True])
def test_vandermonde_by_doubling_is_as_exact_as_the_definition_in_float32(centre):
    """Slow poles over a long axis: squaring powers would lose L eps; both forms stay at the rounding of l x."""
    torch.manual_seed(0)
    w, x = torch.randn(1, 4, 8, 2), poles(4, 8, torch.float32) * 1e-3
    exact = vandermonde_definition(w.double(), x.double(), 4096, centre)
    error = (vandermonde_torch(w, x, 4096, centre) - exact).abs().max()
    assert error <= 2 * (vandermonde_definition(w, x, 4096, centre) - exact).abs().max()


def test_poles_of_more_digits_keep_the_phase_of_a_late_sample():
    """Phases up to 4096 * 3 rad have an error of 7e-4 in float32; with float64 poles only the products are rounded."""
    torch.manual_seed(0)
    w, x = torch.randn(1, 4, 8, 2), poles(4, 8) * torch.tensor([1e-4, 1.0])
    exact = vandermonde_definition(w.double(), x, 4096)
    bound = 64 * torch.finfo(torch.float32).eps * exact.abs().max()  # 16 terms, 12 doublings, a few roundings each
    assert (vandermonde_torch(w, x, 4096) - exact).abs().max() < bound
    assert (vandermonde_torch(w, x.float(), 4096) - exact).abs().max() > bound


@pytest.mark.parametrize("form", [vandermonde_torch, vandermonde_definition])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("L", [1, 2, 6, 30])
def test_vandermonde_gradients_of_first_and_second_order(form, L, centre):
    torch.manual_seed(0)
    arguments = torch.randn(3, 3, 4, 2, dtype=F64, requires_grad=True), poles(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: form(*x, L, centre), arguments)
    assert torch.autograd.gradgradcheck(lambda *x: form(*x, L, centre), arguments, fast_mode=True)


def test_unknown_backend_is_refused_with_the_known_ones():
    w, x = torch.randn(1, 1, 2, 2), poles(1, 2)
    with pytest.raises(ValueError, match=r"backend must be one of \('auto', 'torch', 'keops', 'triton'\), got 'cuda'"):
        vandermonde(w, x, 4, backend="cuda")
