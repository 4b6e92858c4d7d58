"""Every gradient of the layer against finite differences, in float64."""

import pytest
import torch
from torch.func import functional_call

from s4nd import S4ND
from s4nd.conv import EVERYWHERE

F64 = torch.float64


def layer_and_input(kernel: str, sizes: tuple[int, ...], d_state: int = 4, **options):
    """A small layer as a function of u and its parameters, and those as leaves by name, u first."""
    torch.manual_seed(0)
    layer = S4ND(2, len(sizes), d_state=d_state, kernel=kernel, dt_min=0.1, dtype=F64, **options)
    leaves = {"u": torch.randn(2, 2, *sizes, dtype=F64)} | {n: p.detach().clone() for n, p in layer.named_parameters()}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}

    def call(u, *params):
        return functional_call(layer, dict(zip(list(leaves)[1:], params, strict=True)), (u,))

    return call, leaves


@pytest.fixture(params=EVERYWHERE)
def algorithm(request) -> str:
    """Every way to compute the convolution."""
    return request.param


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize("sizes", [(1,), (4,), (3, 2), (2, 1, 2)])
@pytest.mark.parametrize("kernel", ["s4", "s4d"])
def test_layer_gradients(kernel, sizes, align):
    call, leaves = layer_and_input(kernel, sizes, align=align)
    assert torch.autograd.gradcheck(call, tuple(leaves.values()))


@pytest.mark.parametrize(
    "options",
    [
        dict(rank=2, channels=2, n_ssm=None),
        dict(out_channels=2, bidirectional=False),
        dict(base_size=(6, 2), l_max=(4, None), bandlimit=0.5, bidirectional=(False, True)),
    ],
    ids=["rank and channels", "dense", "rate, window and bandlimit"],
)
def test_layer_gradients_with_every_option(options, algorithm):
    call, leaves = layer_and_input("s4d", (2, 3), d_state=2, algorithm=algorithm, **options)
    assert torch.autograd.gradcheck(call, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("kernel", ["s4", "s4d"])
def test_second_derivatives_of_the_layer(kernel, algorithm):
    """As a penalty on gradients or a Hessian takes them: through the product's backward pass and through the kernel's."""
    call, leaves = layer_and_input(kernel, (2, 3), algorithm=algorithm)
    assert torch.autograd.gradgradcheck(call, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("kernel", ["s4", "s4d"])
def test_functional_gradients_equal_those_of_autograd(kernel, algorithm):
    """torch.func, as Hessian-vector products and meta-learning use it."""
    call, leaves = layer_and_input(kernel, (2, 3), algorithm=algorithm)
    leaves = tuple(leaves.values())
    expected = torch.autograd.grad(call(*leaves).square().sum(), leaves)
    got = torch.func.grad(lambda leaves: call(*leaves).square().sum())(leaves)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-12 * e.abs().max())
