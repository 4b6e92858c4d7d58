"""Closed loops against the recurrence that they stand for, and their gradients against differences."""

import pytest
import torch

from s4nd.ops import blocks, centred
from s4nd.ssm.loop import _definition, close_loop, through_loop

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


def listening(g):
    """What `through_loop` takes of (I+1, J+1, H, L)."""
    return torch.cat([g[:, -1], g[-1, :-1]]), len(g) - 1


@pytest.mark.parametrize("elements", [1, 2**20])  # a block for each head, one
@pytest.mark.parametrize("L", [2, 6, 40])
def test_centred_response_is_that_of_the_samples_in_pairs(monkeypatch, L, elements):
    monkeypatch.setattr(blocks, "ELEMENTS", elements)
    g = passive(3, 2, 3, L)
    expected = centred(g[:-1, :-1] - by_samples(g))
    got = through_loop(*listening(g), 1e-12, centre=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11 * expected.abs().max())


def test_responses_in_float32_go_through_the_loop_in_float64():
    """The result errs by its own rounding and that of what comes in, which nothing lifts."""
    g = passive(2, 2, 3, 50)
    expected = by_samples(g.float().double())
    assert (close_loop(g.float(), 1e-7) - expected).abs().max() <= 4 * torch.finfo(torch.float32).eps * g.abs().max()


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize(
    "form", [lambda g, n, centre: through_loop(g, n, 1e-12, centre), lambda g, n, centre: _definition(g, n, 4, centre)]
)
def test_gradients_of_first_and_second_order(form, centre):
    g, outputs = listening(passive(3, 3, 2, 6))
    function = lambda g: form(g, outputs, centre)  # noqa: E731
    assert torch.autograd.gradcheck(function, (g.requires_grad_(),))
    assert torch.autograd.gradgradcheck(function, (g,), fast_mode=True)


def test_backward_pass_may_run_again():
    """It leaves what the forward pass kept as it is."""
    g, outputs = listening(passive(2, 2, 3, 6))
    y = through_loop(g.requires_grad_(), outputs, 1e-12, centre=True).square().sum()
    first, again = (torch.autograd.grad(y, g, retain_graph=True) for _ in range(2))
    assert torch.equal(*first, *again)
