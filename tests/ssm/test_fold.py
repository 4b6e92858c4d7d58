"""Folded kernels against the trained ones on their grid, and against integrals of the function that they say they are."""

import math

import pytest
import torch

from s4nd.ssm import diagonal_kernel
from s4nd.ssm.fold import folded_kernel

F64 = torch.float64


def modes(H=2, N=6, C=3, fast=8.0):
    """log_a, b, C of which some turn by more than half a turn a step, one is damped within a step and one hardly at all."""
    g = torch.Generator().manual_seed(0)
    im = torch.linspace(0.1, fast, N, dtype=F64).expand(H, N) * torch.tensor([[1.0], [0.9]], dtype=F64)
    re = -torch.tensor([1e-3, 0.1, 0.5, 1.0, 3.0, 40.0], dtype=F64)[:N].expand(H, N)
    log_a = torch.stack([re, im], -1)
    return log_a, torch.randn(H, N, 2, dtype=F64, generator=g), torch.randn(C, H, N, 2, dtype=F64, generator=g)


@pytest.mark.parametrize("align", ["edge", "centre"])
def test_on_the_trained_grid_it_is_the_trained_kernel(align):
    log_a, b, C = modes()
    k = diagonal_kernel(log_a, b, C, 20, align=align)
    torch.testing.assert_close(
        folded_kernel(log_a, b, C, 20, 1.0, align=align), k, rtol=0, atol=1e-12 * k.abs().max().item()
    )


@pytest.mark.parametrize("align, times", [("edge", 2), ("edge", 3), ("centre", 3), ("centre", 5)])
def test_finer_lags_add_up_to_the_trained_ones(align, times):
    """Cells of the trained grid are unions of finer ones: for edges always, for centres where `times` is odd."""
    log_a, b, C = modes()
    k, fine = (
        diagonal_kernel(log_a, b, C, 8, align=align),
        folded_kernel(log_a, b, C, 8 * times, 1 / times, align=align),
    )
    first = times // 2 + 1 if align == "centre" else times
    cells = [fine[..., :first], *(fine[..., first + j * times : first + (j + 1) * times] for j in range(7))]
    total = torch.stack([cell.sum(-1) for cell in cells], -1)
    torch.testing.assert_close(total, k, rtol=0, atol=1e-12 * k.abs().max().item())


@pytest.mark.parametrize("rate", [0.25, 0.4, 1.7, 3.0])
@pytest.mark.parametrize("align", ["edge", "centre"])
def test_lags_are_integrals_of_one_function_without_frequencies_above_nyquist(align, rate):
    """By the trapezium rule on 2,000 points a lag, whose error is a second derivative (at most 12^2) / (12 n^2)."""
    log_a, b, C = modes(N=5)
    x = torch.view_as_complex(log_a.clone()) * (2 if align == "centre" else 1)
    w = torch.view_as_complex(C) * torch.view_as_complex(b)
    c = w * (1 + torch.exp(-x / 2)) if align == "centre" else w
    y = torch.complex(x.real, torch.remainder(x.imag + math.pi, 2 * math.pi) - math.pi)
    G = c * y / (torch.exp(y) - 1) * (torch.exp(y / 2) if align == "centre" else 1)
    found = folded_kernel(log_a, b, C, 6, rate, align=align)
    for j in range(1, 6):
        low, high = ((j - 0.5) * rate, (j + 0.5) * rate) if align == "centre" else (j * rate, (j + 1) * rate)
        t = torch.linspace(low, high, 2001, dtype=F64)
        g = 2 * (G[..., None] * torch.exp(y[..., None] * t)).sum(-2).real
        wanted = torch.trapezoid(g, t)
        extra = 0.0
        if align == "centre":  # what is held over the trained pixel reaches lags within it
            inside = max(0.0, min(high, 0.5) - low) * 2
            half = torch.linspace(0, 0.5, 2001, dtype=F64)
            delta = diagonal_kernel(log_a, b, C, 1, align=align)[..., 0] - torch.trapezoid(
                2 * (G[..., None] * torch.exp(y[..., None] * half)).sum(-2).real, half
            )
            extra = inside * delta
        torch.testing.assert_close(found[..., j], wanted + extra, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("align", ["edge", "centre"])
def test_gradients_are_finite_where_modes_stand_still_or_turn_once(align):
    log_a = torch.tensor(
        [[[0.0, 0.0], [-1e-8, 2 * math.pi], [-1e4, math.pi], [-1e-3, 4 * math.pi]]], dtype=F64
    ).requires_grad_()
    b, C = torch.ones(1, 4, 2, dtype=F64, requires_grad=True), torch.ones(1, 1, 4, 2, dtype=F64, requires_grad=True)
    k = folded_kernel(log_a, b, C, 7, 0.3, align=align)
    assert k.isfinite().all()
    k.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (log_a, b, C))
