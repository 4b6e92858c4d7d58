"""Every operation that has an own backward pass, under torch.func and forward mode: against loops and reverse mode."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from s4nd.ops import pairs, phi1, vandermonde
from s4nd.ssm import DISCRETIZATIONS
from s4nd.ssm.loop import close_loop

# torch writes its own forward derivatives in TorchScript, and warns of that
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
F64 = torch.float64


def poles(*shape: int) -> torch.Tensor:
    return torch.stack([-torch.rand(shape, dtype=F64), torch.randn(shape, dtype=F64)], dim=-1)


def cases() -> dict:
    """By name: a function, and its arguments (float64)."""
    torch.manual_seed(0)
    real = partial(torch.randn, dtype=F64)
    found = {f"pairs.{name}": (getattr(pairs, name), (real(3, 2),)) for name in ("conj", "exp", "expm1")}
    found |= {f"pairs.{name}": (getattr(pairs, name), (real(2, 3, 2), real(3, 2))) for name in ("mul", "div")}
    found["phi1"] = phi1, (torch.cat([poles(3), 1e-5 * poles(2)]),)
    for centre in (False, True):
        found[f"vandermonde {centre=}"] = partial(vandermonde, L=5, centre=centre), (real(2, 3, 4, 2), poles(3, 4))
    for name, rule in DISCRETIZATIONS.items():
        found[name] = (
            lambda dt, A, rule=rule: torch.cat(rule(dt, A, 2.0, 0.5), -1),
            (torch.rand(3, 1, dtype=F64), poles(3, 2)),
        )
    found["close_loop"] = lambda g: close_loop(g.exp(), 1e-12), (real(2, 2, 1, 4),)
    return found


CASES = cases()


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def assert_equal(got: tuple, expected: tuple) -> None:
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-10 * max(1.0, e.abs().max()))


def test_vmap_equals_a_loop(case):
    function, inputs = case
    batch = tuple(torch.stack([x, 0.5 * x, 0.25 * x]) for x in inputs)
    assert_equal((vmap(function)(*batch),), (torch.stack([function(*x) for x in zip(*batch, strict=True)]),))


def test_gradients_of_all_kinds_agree(case):
    """Forward over reverse too; reverse mode is checked against differences with each operation."""
    function, inputs = case
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    probe = torch.randn_like(function(*inputs))
    scalar = lambda *x: (function(*x) * probe).sum()  # noqa: E731
    positions = tuple(range(len(inputs)))
    expected = torch.autograd.grad(scalar(*leaves), leaves)
    assert_equal(grad(scalar, positions)(*inputs), expected)
    assert_equal(jacrev(scalar, positions)(*inputs), expected)
    assert_equal(jacfwd(scalar, positions)(*inputs), expected)
    along = (sum((x * g).sum() for x, g in zip(inputs, expected, strict=True)),)
    assert_equal(jvp(scalar, inputs, inputs)[1:], along)
    with forward_ad.dual_level():
        dual = scalar(*(forward_ad.make_dual(x, x) for x in inputs))
        assert_equal(forward_ad.unpack_dual(dual)[1:], along)


def test_hessian_equals_twice_reverse_mode(case):
    function, inputs = case
    probe = torch.randn_like(function(*inputs))
    scalar = lambda *x: (function(*x) * probe).sum()  # noqa: E731
    leaf = inputs[0].clone().requires_grad_()
    first = torch.autograd.grad(scalar(leaf, *inputs[1:]), leaf, create_graph=True)[0]
    direction = torch.randn_like(first)
    expected = torch.zeros_like(leaf)
    if first.requires_grad:
        (second,) = torch.autograd.grad((first * direction).sum(), leaf, allow_unused=True)
        expected = expected if second is None else second
    got = torch.tensordot(hessian(scalar)(*inputs), direction, dims=leaf.ndim)
    assert_equal((got,), (expected,))


def test_gradient_of_each_sample_equals_a_loop(case):
    function, inputs = case
    batch = torch.stack([inputs[0], 0.5 * inputs[0]])
    of_sample = grad(lambda x: function(x, *inputs[1:]).square().sum())
    assert_equal((vmap(of_sample)(batch),), (torch.stack([of_sample(x) for x in batch]),))
