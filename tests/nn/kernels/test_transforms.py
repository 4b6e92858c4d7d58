"""Every kernel under torch.func and forward mode, with respect to its parameters: against loops and against reverse mode."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

from s4nd.nn.kernels import KERNELS

# torch writes its own forward derivatives in TorchScript, and warns of that
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
F64 = torch.float64
L, RATE = 4, 0.8
CASES = [(name, align) for name in KERNELS for align in ("edge", "centre")]


def make(name: str, seed: int = 0):
    torch.manual_seed(seed)
    return KERNELS[name](2, 4, dtype=F64)


def assert_equal(got: dict, expected: dict) -> None:
    assert got.keys() == expected.keys()
    for name, e in expected.items():
        torch.testing.assert_close(
            got[name], e, rtol=0, atol=1e-10 * max(1.0, e.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("name", "align"), CASES)
def test_ensemble_equals_its_members(name, align):
    members = [make(name, seed) for seed in range(3)]
    parameters, buffers = stack_module_state(members)
    call = lambda p, b: functional_call(members[0], (p, b), (L, RATE), dict(align=align))  # noqa: E731
    expected = torch.stack([member(L, RATE, align=align) for member in members]).detach()
    assert_equal({"k": vmap(call)(parameters, buffers)}, {"k": expected})


@pytest.mark.parametrize(("name", "align"), CASES)
def test_gradients_of_all_kinds_agree(name, align):
    kernel = make(name)
    k = kernel(L, RATE, align=align)
    probe, p = torch.randn_like(k), {n: x.detach() for n, x in kernel.named_parameters()}
    (k * probe).sum().backward()
    expected = {n: x.grad for n, x in kernel.named_parameters()}
    scalar = lambda p: (functional_call(kernel, p, (L, RATE), dict(align=align)) * probe).sum()  # noqa: E731
    for transform in (grad, jacrev, jacfwd):
        assert_equal(transform(scalar)(p), expected)
    along = {"jvp": sum((expected[n] * x).sum() for n, x in p.items())}
    assert_equal({"jvp": jvp(scalar, (p,), (p,))[1]}, along)
    with forward_ad.dual_level():
        dual = scalar({n: forward_ad.make_dual(x, x) for n, x in p.items()})
        assert_equal({"jvp": forward_ad.unpack_dual(dual).tangent}, along)


@pytest.mark.parametrize(("name", "align"), CASES)
def test_hessian_equals_differences_of_gradients(name, align):
    """Central differences err by the square of the step times third derivatives, and by its rounding: 1e-5 of the largest."""
    kernel = make(name)
    p = {n: x.detach() for n, x in kernel.named_parameters()}
    scalar = lambda p: functional_call(kernel, p, (L, RATE), dict(align=align)).square().sum()  # noqa: E731
    direction = {n: torch.randn_like(x) for n, x in p.items()}
    blocks = hessian(scalar)(p)
    got = {n: sum(torch.tensordot(blocks[n][m], direction[m], dims=p[m].ndim) for m in p) for n in p}
    step = 1e-5
    ahead, behind = (grad(scalar)({n: x + s * direction[n] for n, x in p.items()}) for s in (step, -step))
    for n, value in got.items():
        expected = (ahead[n] - behind[n]) / (2 * step)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max()))


@pytest.mark.parametrize("name", KERNELS)
def test_gradient_of_each_member_equals_a_loop(name):
    members = [make(name, seed) for seed in range(2)]
    scalar = lambda p: functional_call(members[0], p, (L,)).square().sum()  # noqa: E731
    got = vmap(grad(scalar))(stack_module_state(members)[0])
    each = [grad(scalar)({n: x.detach() for n, x in member.named_parameters()}) for member in members]
    assert_equal(got, {n: torch.stack([g[n] for g in each]) for n in got})
