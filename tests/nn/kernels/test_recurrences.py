"""Every kernel against its state-space model multiplied out and run step by step, in float64, from the parameters alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from s4nd.nn.kernels import KERNELS
from s4nd.nn.kernels.continuous import ContinuousKernel
from s4nd.ssm.recurrence import centred_recurrence, dense_ssm, discretize_dense, recurrence

F64 = torch.float64
H, N, S, COPIES = 4, 8, 2, 2
REAL_A = {
    "exp": lambda k: -k.log_A_real.exp(),
    "softplus": lambda k: -F.softplus(k.A_real),
    "relu": lambda k: -torch.relu(k.A_real),
    "none": lambda k: k.A_real,
}


def combinations() -> list[tuple[str, dict]]:
    """Every kernel with each of its initial operators, discretisations and constraints, one dt per head or per mode."""
    cases = []
    for name, kind in KERNELS.items():
        if not issubclass(kind, ContinuousKernel):
            cases += [(name, dict(init=init)) for init in kind.inits]
            continue
        for init in kind.inits:
            cases += [(name, dict(init=init, tie_dt=False)), (name, dict(init=init))]
        cases += [
            (name, dict(disc=d, A_constraint=c, tie_dt=tie))
            for d in kind.discs
            for c in kind.constraints
            for tie in (0, 1)
        ]
    return cases


def make(name: str, options: dict):
    torch.manual_seed(0)
    if name != "lru":
        options = dict(dt_min=0.05, dt_max=0.2) | options
    kernel = KERNELS[name](H, N, COPIES, n_ssm=S, dtype=F64, **options)
    if options.get("A_constraint", "none" if name == "dss" else None) == "none":
        kernel.A_real.data[:, 0] = 0.3  # a growing mode
    return kernel


def complex_(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x.contiguous())


def per_head(x: torch.Tensor) -> torch.Tensor:
    """Head h uses model h mod S: (..., S, n) -> (..., H, n)."""
    return torch.cat([x] * (H // S), dim=-2)


def doubled(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x.conj()], dim=-1)


@torch.no_grad()
def dense_step(kernel, L: int, rate: float, fraction: float):
    """Ab (H, N, N), Bb (H, N), C (C, H, N) of `fraction` of a step."""
    if kernel.name == "lru":
        log_lambda = per_head(torch.complex(-kernel.nu.exp(), kernel.theta))
        held = (torch.exp(rate * fraction * log_lambda) - 1) / (torch.exp(log_lambda) - 1)
        b = held * per_head(kernel.log_gamma.exp() * complex_(kernel.B))
        return (
            torch.diag_embed(doubled(torch.exp(rate * fraction * log_lambda))),
            doubled(b),
            doubled(complex_(kernel.C)),
        )
    dt = kernel.log_dt.exp() if kernel.log_dt.ndim == 2 else kernel.log_dt.exp()[:, None]
    re = REAL_A[kernel.A_constraint](kernel)
    if kernel.name == "ema":
        A = per_head(re).to(torch.complex128)
        A, B, C, dt = torch.diag_embed(A), -A, kernel.C.to(torch.complex128), dt.expand(H, N)
    else:
        A = per_head(torch.complex(re, kernel.A_imag))
        P = per_head(complex_(kernel.P)) if kernel.name == "s4" else None
        B = 1 / (torch.exp(L * rate * dt * A) - 1) if kernel.name == "dss" else per_head(complex_(kernel.B))
        A, B, C = dense_ssm(A, B, complex_(kernel.C), P)
        dt = doubled(dt.expand(H, N // 2))
    # x' = diag(dt) (A x + B u), discretised with step 1.
    one = torch.ones(H, dtype=F64)
    Ab, Bb = discretize_dense(
        one, dt[..., None] * A, B if kernel.disc == "dirac" else dt * B, kernel.disc, rate, fraction
    )
    return Ab, Bb, C


def oracle(kernel, L: int, rate: float, align: str) -> torch.Tensor:
    impulse = torch.zeros(H, L, dtype=F64)
    impulse[:, 0] = 1
    if align == "edge":
        return recurrence(*dense_step(kernel, L, rate, 1.0), impulse)
    return centred_recurrence(*dense_step(kernel, L, rate, 0.5), impulse)


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize(
    ("name", "options"), combinations(), ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values()))
)
def test_kernel_equals_its_recurrence_at_every_rate(name, options, align):
    kernel = make(name, options)
    for L in (1, 9):
        for rate in (1.0, 0.5, 2.0):
            expected = oracle(kernel, L, rate, align)
            got = kernel(L, rate, align=align)
            torch.testing.assert_close(got.detach(), expected, rtol=0, atol=1e-11 * expected.abs().max())


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize(
    ("name", "options"), combinations(), ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values()))
)
def test_rescaled_kernel_at_rate_one_is_the_kernel_at_that_rate(name, options, align):
    """The phases of the LRU stay below those that the coarser grid can hold; async keeps its gain, so it refuses."""
    options = options | (dict(max_phase=math.pi / 2) if name == "lru" else {})
    for rate in (0.5, 2.0):
        kernel = make(name, options)
        before = kernel(9, rate, align=align).detach()
        if options.get("disc") == "async":
            with pytest.raises(ValueError, match=f"disc='async' keeps its gain.*got rate={rate}"):
                kernel.rescale(rate)
            continue
        kernel.rescale(rate)
        after = kernel(9, align=align).detach()
        torch.testing.assert_close(after, before, rtol=0, atol=1e-11 * before.abs().max())


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize(
    ("name", "options"), [("lru", {}), *((n, dict(tie_dt=t)) for n in KERNELS for t in (0, 1) if n != "lru")]
)
def test_kernel_gradients(name, options, align):
    torch.manual_seed(0)
    kernel = KERNELS[name](2, 4, dtype=F64, **({} if name == "lru" else dict(dt_min=0.1, dt_max=0.5)), **options)
    names, values = zip(*kernel.named_parameters(), strict=True)
    values = [v.detach().clone().requires_grad_() for v in values]

    def call(*values):
        return torch.func.functional_call(kernel, dict(zip(names, values, strict=True)), (5, 2.0), dict(align=align))

    grads = torch.autograd.grad(call(*values).square().sum(), values)
    for parameter, grad in zip(names, grads, strict=True):
        assert grad.count_nonzero() > 0, parameter
    assert torch.autograd.gradcheck(call, values)


def ends(kernel) -> None:
    """dt, A and the LRU's nu at and beyond the ends of their ranges, another end for each head."""
    for name, p in kernel.named_parameters():
        if name == "log_dt":
            values = [-14.0, -13.0, 4.0, 4.7]
        elif name == "log_A_real":
            values = [-19.0, 9.3, 0.0, -18.0]
        elif name == "A_real":
            values = [0.0, 1.1e4, 1e-9, -1.1e4] if kernel.A_constraint == "none" else [-20.0, 1.1e4, 0.0, 1.0]
        elif name == "A_imag":
            values = [0.0, 0.0, 1.0, 1e4]
        elif name == "nu":
            values = [-19.0, 9.3, -18.0, 0.0]
        elif name == "theta":
            values = [0.0, 2 * math.pi, math.pi, 1e3]
        else:
            continue
        p.data.copy_(torch.tensor(values).reshape(4, *[1] * (p.ndim - 1)).expand_as(p))


def walks() -> list[tuple[str, dict]]:
    kinds = {name: kind for name, kind in KERNELS.items() if name != "lru"}
    cases = [(name, dict(A_constraint=c)) for name, kind in kinds.items() for c in kind.constraints]
    cases += [("s4d", dict(A_constraint="none", disc=disc)) for disc in KERNELS["s4d"].discs[1:]]
    return [*cases, ("lru", {}), ("s4d", dict(tie_dt=False)), ("s4", dict(tie_dt=False))]


@pytest.mark.parametrize(
    ("name", "options"), walks(), ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values()))
)
def test_value_and_gradients_stay_finite_under_random_steps(name, options):
    """At a high rate, from the ends of the ranges of dt and A, in float32, with steps of 0.2 on every parameter."""
    torch.manual_seed(0)
    kernel = KERNELS[name](4, 4, n_ssm=None, **options)
    ends(kernel)
    parameters = list(kernel.parameters())
    for i in range(250):
        k = kernel(8, 16.0, align=("edge", "centre")[i % 2])
        grads = torch.autograd.grad(k.sum(), parameters)
        assert torch.stack([k.isfinite().all(), *(g.isfinite().all() for g in grads)]).all(), i
        with torch.no_grad():
            for p in parameters:
                p.add_(torch.randn_like(p), alpha=0.2)


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize(("name", "disc"), [("dss", "zoh"), *(("s4d", d) for d in KERNELS["s4d"].discs)])
def test_mode_without_damping_and_frequency_has_finite_value_and_gradients(name, disc, align):
    kernel = KERNELS[name](2, 4, A_constraint="none", disc=disc)
    kernel.A_real.data.zero_()
    kernel.A_imag.data.zero_()
    k = kernel(8, align=align)
    k.sum().backward()
    assert k.isfinite().all() and all(p.grad.isfinite().all() for p in kernel.parameters())


@pytest.mark.parametrize("disc", KERNELS["s4d"].discs)
@pytest.mark.parametrize(("L", "rate"), [(1, 1.0), (8, 1.0), (1000, 1.0), (1000, 0.01), (3, 0.01), (10, 50.0)])
def test_growing_mode_grows_at_most_by_e_in_a_step_and_e20_over_the_axis(L, rate, disc):
    """The bilinear rule turns e^x, x <= 1, into at most ((1 + 1/2) / (1 - 1/2))^x = e^(1.1 x)."""
    kernel = KERNELS["s4d"](2, 4, A_constraint="none", disc=disc, dtype=F64)
    kernel.A_real.data.fill_(1e4)
    log_a, b = kernel.modes(kernel.values(), L, rate, 1.0)
    growth = log_a[..., 0].max() / math.log(3.0 if disc == "bilinear" else math.e)
    assert growth <= 1 + 1e-12 and growth * L <= 20 + 1e-9
    assert b.isfinite().all()
