"""Closed loops against the recurrence that they stand for, and their gradients against differences."""

import pytest
import torch

from s4nd.ssm.loop import _definition, close_loop

F64 = torch.float64


def passive(I: int, J: int, H: int, L: int):  # noqa: E741
    """Decaying responses whose loop is passive: sum_n c_n a_n^l with c_n > 0 and 0 < a_n < 1 in the last row and column."""
    torch.manual_seed(0)
    a = torch.rand(H, 4, 1, dtype=F64)
    powers = a ** torch.arange(L, dtype=F64)  # (H, 4, L)
    c = torch.randn(I, J, H, 4, dtype=F64)
    c[-1, -1] = c[-1, -1].abs()
    return torch.einsum("ijhn,hnl->ijhl", c, powers)


def by_samples(g):
    """k_ij = g_ij - m_iR * y_j where y_j = g_Rj - m_RR * y_j and m is the mean of a sample and the one before, sample by
    sample."""
    mean = g[:, -1] + torch.cat([torch.zeros_like(g[:, -1, :, :1]), g[:, -1, :, :-1]], dim=-1)
    mean = mean / 2  # (I, H, L)
    y = torch.zeros_like(g[-1, :-1])  # (J-1, H, L)
    L = g.shape[-1]
    for l in range(L):  # noqa: E741
        past = sum((mean[-1, :, m] * y[..., l - m] for m in range(1, l + 1)), torch.zeros_like(y[..., 0]))
        y[..., l] = (g[-1, :-1, :, l] - past) / (1 + mean[-1, :, 0])
    back = torch.stack([sum(mean[:-1, None, :, m] * y[..., l - m] for m in range(l + 1)) for l in range(L)], dim=-1)  # noqa: E741
    return g[:-1, :-1] - back


@pytest.mark.parametrize("L", [1, 2, 7, 40])
@pytest.mark.parametrize("shape", [(2, 2, 3), (4, 3, 2)])
def test_closed_loop_equals_its_recurrence(shape, L):
    g = passive(*shape, L)
    expected = by_samples(g)
    torch.testing.assert_close(close_loop(g, 1e-12), expected, rtol=0, atol=1e-11 * expected.abs().max())


@pytest.mark.parametrize("tol", [1e-7, 1e-11])
def test_closed_loop_is_as_exact_as_asked(tol):
    g = passive(2, 2, 3, 50)
    expected = by_samples(g)
    assert (close_loop(g, tol) - expected).abs().max() <= tol * g.abs().max()


@pytest.mark.parametrize("form", [lambda g: close_loop(g, 1e-12), lambda g: _definition(g, 4)])
def test_gradients_of_first_and_second_order(form):
    g = passive(3, 2, 2, 5).requires_grad_()
    assert torch.autograd.gradcheck(form, (g,))
    assert torch.autograd.gradgradcheck(form, (g,), fast_mode=True)
