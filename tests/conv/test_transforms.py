"""The transforms of torch.func and forward mode on the convolution, against one call after the other and finite differences."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from s4nd.conv import EVERYWHERE, separable_conv

F64 = torch.float64
pytestmark = [
    pytest.mark.parametrize("algorithm", ["auto", *EVERYWHERE]),
    pytest.mark.filterwarnings(
        "ignore:.torch.jit.script. is deprecated:FutureWarning"
    ),  # forward mode loads its rules by it
]


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * expected.detach().abs().max())


def function_and_inputs(algorithm: str, *lead: int):
    """The convolution as a function of u, two kernels and the skip, and inputs with further axes in front."""
    torch.manual_seed(0)
    u, skip = torch.randn(*lead, 2, 3, 3, 2, dtype=F64), torch.randn(*lead, 2, 3, dtype=F64)
    k = [torch.randn(*lead, 2, 2, 3, 2 * n - 1, dtype=F64) for n in (3, 2)]
    return lambda u, k1, k2, skip: separable_conv(u, [k1, k2], skip, algorithm=algorithm), (u, *k, skip)


@pytest.mark.parametrize("mapped", [(0, None, None, None), (None, 0, 0, 0), (None, 0, None, None), (0, 0, 0, 0)])
def test_vmap_gives_each_result(algorithm, mapped):
    f, stacked = function_and_inputs(algorithm, 3)
    inputs = [x if axis == 0 else x[0] for x, axis in zip(stacked, mapped, strict=True)]
    each = [f(*(x[i] if axis == 0 else x for x, axis in zip(inputs, mapped, strict=True))) for i in range(3)]
    close(vmap(f, mapped)(*inputs), torch.stack(each))


def test_grad_is_that_of_a_backward_pass(algorithm):
    f, inputs = function_and_inputs(algorithm)
    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(f(*leaves).square().sum(), leaves)
    for g, e in zip(grad(lambda *x: f(*x).square().sum(), (0, 1, 2, 3))(*inputs), expected, strict=True):
        close(g, e)


def test_gradients_per_sample_are_those_of_each_sample(algorithm):
    f, (u, *rest) = function_and_inputs(algorithm)
    per_sample = grad(lambda image, *x: f(image[None], *x).square().sum(), (1, 2, 3))
    got = vmap(per_sample, (0, None, None, None))(u, *rest)
    for i, image in enumerate(u):
        for g, e in zip(got, per_sample(image, *rest), strict=True):
            close(g[i], e)


def test_forward_mode_agrees_with_reverse_mode(algorithm):
    f, inputs = function_and_inputs(algorithm)
    forward, reverse = jacfwd(f, (0, 1, 2, 3))(*inputs), jacrev(f, (0, 1, 2, 3))(*inputs)
    for a, b in zip(forward, reverse, strict=True):
        close(a, b)
    tangents = tuple(torch.randn_like(x) for x in inputs)
    _, derivative = jvp(f, inputs, tangents)
    close(derivative, sum(torch.tensordot(J, t, dims=t.ndim) for J, t in zip(reverse, tangents, strict=True)))
    with forward_ad.dual_level():
        dual = f(*(forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)))
        close(forward_ad.unpack_dual(dual).tangent, derivative)
