"""The steps against the dense recurrence, sample by sample, in float64."""

import pytest
import torch

from s4nd.ops import pairs
from s4nd.ssm import DISCRETIZATIONS, diagonal_init, diagonal_step, dplr_init, dplr_step
from s4nd.ssm.recurrence import centred_recurrence, dense_ssm, discretize_dense, recurrence
from s4nd.ssm.stepping import Step

F64 = torch.float64
H, COPIES, N, L = 3, 2, 8, 40


def real(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x.resolve_conj().contiguous())


def run(step: Step, u: torch.Tensor) -> torch.Tensor:
    """u (B, H, S, L) -> (B, C, H, S, L)."""
    x, outputs = step.zero_state(u[..., 0]), []
    for u_l in u.unbind(-1):
        y, x = step(u_l, x)
        outputs.append(y)
    return torch.stack(outputs, dim=-1)


def oracle(dt, A, B, C, P, u, disc, align):
    A, B, C = dense_ssm(A, B, C, P)
    if align == "edge":
        return recurrence(*discretize_dense(dt, A, B, disc), C, u)
    return centred_recurrence(*discretize_dense(dt / 2, A, B, disc), C, u)


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    dt = torch.tensor([0.01, 0.1, 1.0], dtype=F64)
    return dt, torch.randn(COPIES, H, N // 2, dtype=torch.complex128), torch.randn(2, H, 4, L, dtype=F64)


def assert_equal(got, dt, A, B, C, P, u, disc, align):
    """Every image and site has its own state."""
    for b in range(got.shape[0]):
        for s in range(got.shape[3]):
            expected = oracle(dt, A, B, C, P, u[b, :, s], disc, align)
            torch.testing.assert_close(got[b, :, :, s], expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
@pytest.mark.parametrize("init", ["lin", "inv"])
def test_diagonal_step_equals_dense_recurrence(inputs, init, disc, align):
    dt, C, u = inputs
    A, B = (x.expand(H, -1) for x in diagonal_init(init, N))
    log_a, gain = DISCRETIZATIONS[disc](dt[:, None], real(A), 1.0, 0.5 if align == "centre" else 1.0)
    got = run(diagonal_step(log_a, pairs.mul(gain, real(B)), real(C), align=align), u)
    assert_equal(got, dt, A, B, C, None, u, disc, align)


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize("init", ["legs", "legt", "fout"])
def test_dplr_step_equals_dense_recurrence(inputs, init, align):
    """LegT has rank 2."""
    dt, C, u = inputs
    A, P, B, _ = dplr_init(init, N)
    A, B, P = A.expand(H, -1), B.expand(H, -1), P[:, None].expand(-1, H, -1)
    got = run(dplr_step(dt, real(A), real(P), real(B), real(C), align=align), u)
    assert_equal(got, dt, A, B, C, P, u, "bilinear", align)


def test_step_is_float64_for_float32_parameters():
    A, B = (real(x.expand(H, -1)).float() for x in diagonal_init("lin", N))
    step = diagonal_step(0.1 * A, B, torch.ones(1, H, N // 2, 2))
    y, x = step(torch.ones(1, H), step.zero_state(torch.ones(1, H)))
    assert y.dtype == x.dtype == F64
    assert y.shape == (1, 1, H) and x.shape == (1, H, N)
