"""1-D kernels against the dense recurrence, in float64 and float32, at the ends of the parameters' ranges too."""

import pytest
import torch

from s4nd.ops import centred, pairs, phi1
from s4nd.ssm import DISCRETIZATIONS, diagonal_init, diagonal_kernel, dplr, dplr_init, dplr_kernel
from s4nd.ssm.hippo import DIAGONAL, HIPPO
from s4nd.ssm.recurrence import centred_recurrence, dense_ssm, discretize_dense, recurrence

F64 = torch.float64
H, COPIES = 3, 2
LENGTHS = [1, 2, 7, 64]


def real(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x.resolve_conj().contiguous())


def system(init: str, N: int = 16, diagonal: bool | None = None):
    """dt, A, B, C, P complex, per head; P is None for the diagonal operators. Both kinds know legs: `diagonal` decides."""
    torch.manual_seed(0)
    dt = torch.tensor([0.01, 0.1, 1.0], dtype=F64)
    C = torch.randn(COPIES, H, N // 2, dtype=torch.complex128)
    if init not in HIPPO if diagonal is None else diagonal:
        A, B = diagonal_init(init, N)
        return dt, A.expand(H, -1), B.expand(H, -1), C, None
    A, P, B, _ = dplr_init(init, N)
    return dt, A.expand(H, -1), B.expand(H, -1), C, P[:, None].expand(-1, H, -1)


def discretized_kernel(dt, A, B, C, L, disc, align):
    """From the continuous system, all real pairs, to the kernel of a diagonal one."""
    log_a, gain = DISCRETIZATIONS[disc](dt[:, None], A, 1.0, 0.5 if align == "centre" else 1.0)
    return diagonal_kernel(log_a, pairs.mul(gain, B), C, L, align=align)


def oracle(dt, A, B, C, P, L, disc, align):
    A, B, C = dense_ssm(A, B, C, P)
    impulse = torch.zeros(H, L, dtype=F64)
    impulse[:, 0] = 1
    if align == "edge":
        return recurrence(*discretize_dense(dt, A, B, disc), C, impulse)
    return centred_recurrence(*discretize_dense(dt, A, B, disc, fraction=0.5), C, impulse)


@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize("disc", DISCRETIZATIONS)
@pytest.mark.parametrize("init", DIAGONAL)
def test_diagonal_kernel_equals_recurrence(init, disc, align, L):
    dt, A, B, C, _ = system(init, diagonal=True)
    expected = oracle(dt, A, B, C, None, L, disc, align)
    got = discretized_kernel(dt, real(A), real(B), real(C), L, disc, align)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * expected.abs().max())


@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize("algorithm", ["loops", "cauchy"])
@pytest.mark.parametrize("init", ["legs", "legt", "fout"])
def test_dplr_kernel_equals_recurrence(init, algorithm, align, L):
    dt, A, B, C, P = system(init)
    expected = oracle(dt, A, B, C, P, L, "bilinear", align)
    got = dplr_kernel(dt, real(A), real(P), real(B), real(C), L, align=align, algorithm=algorithm)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11 * expected.abs().max())


@pytest.mark.parametrize("algorithm", ["loops", "cauchy"])
@pytest.mark.parametrize("tol", [1e-4, 1e-7, 1e-11])
def test_dplr_kernel_is_as_exact_as_asked(tol, algorithm):
    dt, A, B, C, P = system("legs")
    expected = oracle(dt, A, B, C, P, 50, "bilinear", "edge")
    got = dplr_kernel(dt, real(A), real(P), real(B), real(C), 50, tol=tol, algorithm=algorithm)
    assert (got - expected).abs().max() <= tol * expected.abs().max()


@pytest.mark.parametrize(("init", "N"), [("fout", 64), ("legs", 256)])
def test_two_algorithms_agree_where_no_recurrence_reaches(init, N):
    """They share nothing but the circle's transform. Its error in float64 with 3 L nodes is eps^(3/4) = 1.8e-12 for each, of
    values that are sums over a kernel of L samples: sqrt(L) = 128 times that."""
    dt, A, B, C, P = system(init, N)
    loops, cauchy = (
        dplr_kernel(dt, real(A), real(P), real(B), real(C), 16_384, algorithm=name) for name in ("loops", "cauchy")
    )
    atol = 2 * 128 * torch.finfo(F64).eps ** 0.75 * loops.abs().max()
    torch.testing.assert_close(cauchy, loops, rtol=0, atol=atol)


def test_unknown_algorithm_is_refused():
    dt, A, B, C, P = system("legs", N=4)
    with pytest.raises(ValueError, match=r"algorithm must be one of \('auto', 'loops', 'cauchy'\), got 'fft'"):
        dplr_kernel(dt, real(A), real(P), real(B), real(C), 4, algorithm="fft")


@pytest.mark.parametrize("init", ["legs", "fout"])
def test_dplr_kernel_in_float32_errs_by_its_products_only(init):
    """The circle, whose noise is lifted, is in float64. Phases l Im x of the definition lose up to 64 eps; the products add a
    few eps N."""
    dt, A, B, C, P = system(init)
    expected = oracle(dt, A, B, C, P, 64, "bilinear", "edge")
    got = dplr_kernel(*(x.float() for x in (dt, real(A), real(P), real(B), real(C))), 64)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() <= (64 + 4 * 16) * torch.finfo(torch.float32).eps * expected.abs().max()


@pytest.mark.parametrize("init", ["lin", "fout"])
def test_halved_step_holds_the_coarse_step_response(init):
    """A constant input is held exactly by zoh, so its response at shared instants does not depend on the step; the bilinear
    rule agrees to second order: the difference falls by about 4 when the step is halved."""
    dt, A, B, C, P = system(init)
    dt = 0.05 * torch.ones_like(dt)

    def response(step, L):
        if P is None:
            return discretized_kernel(dt * step, real(A), real(B), real(C), L, "zoh", "edge").cumsum(-1)
        return dplr_kernel(dt * step, real(A), real(P), real(B), real(C), L).cumsum(-1)

    coarse, fine, finest = response(1, 32), response(0.5, 64)[..., 1::2], response(0.25, 128)[..., 3::4]
    if P is None:
        torch.testing.assert_close(fine, coarse, rtol=0, atol=1e-12)
    else:
        late = slice(8, None)  # the first steps see the operator's fastest modes, which no rule resolves
        ratio = (coarse - fine)[..., late].norm() / (fine - finest)[..., late].norm()
        assert 2 < ratio < 8


@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("disc", DISCRETIZATIONS)
def test_discretisation_equals_its_matrix_form_at_every_rate(disc, rate, fraction):
    dt, A, B, C, _ = system("inv")
    log_a, gain = DISCRETIZATIONS[disc](dt[:, None], real(A), rate, fraction)
    Ab, Bb = discretize_dense(dt, *dense_ssm(A, B, C)[:2], disc, rate, fraction)
    torch.testing.assert_close(pairs.exp(log_a), real(Ab.diagonal(dim1=1, dim2=2)[:, :8]), rtol=0, atol=1e-12)
    torch.testing.assert_close(pairs.mul(gain, real(B)), real(Bb[:, :8]), rtol=0, atol=1e-12)


def test_async_is_zoh_at_rate_one_and_its_gain_ignores_the_rate():
    dt, A, *_ = system("lin")
    for fraction in (0.5, 1.0):
        for got, expected in zip(
            *(DISCRETIZATIONS[d](dt[:, None], real(A), 1.0, fraction) for d in ("async", "zoh")), strict=True
        ):
            assert torch.equal(got, expected)
        slow, fast = (DISCRETIZATIONS["async"](dt[:, None], real(A), rate, fraction)[1] for rate in (2.0, 0.5))
        assert torch.equal(slow, fast)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_phi1_keeps_its_digits_and_its_slope_near_zero(dtype):
    """phi1 = 1 + x / 2 + x^2 / 6 + ...: the slope is 1/2. A quotient's slope loses eps / |x|, at most sqrt(eps)."""
    eps = torch.finfo(dtype).eps
    for size in (0.0, 1e-12, 0.5 * eps**0.5, 2 * eps**0.5, 1e-2):
        for direction in ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (-0.6, 0.8)):
            x = (size * torch.tensor(direction, dtype=dtype)).requires_grad_()
            value = phi1(x)
            z = torch.view_as_complex(x.detach().to(F64))
            series = 1 + z / 2 + z**2 / 6 + z**3 / 24 + z**4 / 120
            assert (torch.view_as_complex(value.detach().to(F64)) - series).abs() <= 8 * eps + size**5
            value[0].backward()
            slope = 0.5 + z / 3 + z**2 / 8 + z**3 / 30
            expected = torch.view_as_real(slope.conj().resolve_conj())
            assert (x.grad.to(F64) - expected).abs().max() <= 8 * eps**0.5 + size**4


@pytest.mark.parametrize("disc", DISCRETIZATIONS)
def test_discretisation_has_gradients_at_and_beyond_an_undamped_mode(disc):
    dt = torch.tensor([[0.3]], dtype=F64, requires_grad=True)
    for A in ((0.0, 0.0), (0.0, -2.0), (0.4, 1.0)):
        A = torch.tensor([[A]], dtype=F64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda dt, A: DISCRETIZATIONS[disc](dt, A, 2.0, 0.5), (dt, A))


def test_centred_kernel_collects_half_steps():
    fine = torch.arange(8.0)  # the last one is not used
    assert centred(fine).tolist() == [0.0, 1.0 + 2.0, 3.0 + 4.0, 5.0 + 6.0]


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize("disc", DISCRETIZATIONS)
def test_diagonal_kernel_gradients(disc, align):
    dt, A, B, C, _ = system("lin", N=4)
    inputs = [x.detach().clone().requires_grad_() for x in (0.3 + dt, real(A), real(B), real(C))]
    assert torch.autograd.gradcheck(lambda *x: discretized_kernel(*x, 5, disc, align), inputs)


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize("algorithm", ["loops", "cauchy"])
@pytest.mark.parametrize("init", ["legs", "legt"])
def test_dplr_kernel_gradients(init, algorithm, align):
    dt, A, B, C, P = system(init, N=4)
    inputs = [x.detach().clone().requires_grad_() for x in (0.3 + dt, real(A), real(P), real(B), real(C))]
    assert torch.autograd.gradcheck(lambda *x: dplr_kernel(*x, 5, align=align, algorithm=algorithm), inputs)


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize("disc", DISCRETIZATIONS)
@pytest.mark.parametrize(("damping", "frequency"), [(1e-8, 0.0), (1e4, 0.0), (1e4, 1e4), (1e-8, 1e4), (2.0, 0.0)])
@pytest.mark.parametrize("dt", [1e-6, 1.0, 1e2])
def test_float32_kernel_and_gradients_are_finite_at_the_ends_of_the_ranges(dt, damping, frequency, disc, align):
    """damping 2, dt 1 puts the bilinear pole at exactly 0, whose logarithm does not exist."""
    leaves = [torch.tensor([dt]), torch.tensor([[[-damping, -frequency]]]), torch.ones(1, 1, 2), torch.ones(1, 1, 1, 2)]
    leaves = [x.requires_grad_() for x in leaves]
    k = discretized_kernel(*leaves, 33, disc, align)
    k.sum().backward()
    assert k.isfinite().all()
    assert all(x.grad.isfinite().all() for x in leaves)


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize("apart", [0, 10**9])  # what does not go through the loop by itself, or with the rest
@pytest.mark.parametrize("init", ["legs", "legt"])  # one loop, and two
def test_chunks_of_heads_change_nothing(monkeypatch, init, apart, align):
    dt, A, B, C, P = system(init)
    leaves = [x.clone().requires_grad_() for x in (dt, real(A), real(P), real(B), real(C))]
    results = []
    for chunk in (1, 2**30):
        monkeypatch.setattr(dplr, "CHUNK", chunk)
        monkeypatch.setattr(dplr, "APART", apart)
        k = dplr_kernel(*leaves, 20, align=align)
        results.append((k, *torch.autograd.grad(k.square().sum(), leaves)))
    for some, whole in zip(*results, strict=True):
        torch.testing.assert_close(some, whole, rtol=0, atol=1e-11 * whole.abs().max().item())
