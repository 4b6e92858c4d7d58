"""torch.compile of the convolution against the eager one."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, jvp, vmap

from s4nd.conv import separable_conv

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:FutureWarning",  # forward mode loads its rules by it
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",  # opcheck reads it
)


def block(u, k1, k2, skip):
    """With something to fuse before and after."""
    return separable_conv(u.sin(), [k1, k2], skip).flatten(1, 2).cos()


def inputs(batch: int, *sizes: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    u, skip = torch.randn(batch, 3, *sizes, dtype=F64), torch.randn(1, 3, dtype=F64)
    kernels = [torch.randn(1, 1, 3, 2 * n - 1, dtype=F64) for n in sizes]
    return [x.requires_grad_() for x in (u, *kernels, skip)]


def test_dynamic_sizes_compile_once_whatever_the_algorithm():
    """5 x 6 and 40 x 37 take matrices or FFTs, 6 x 5 with 64 images one matrix; fullgraph, with gradients."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, backend=counter, fullgraph=True, dynamic=True)
    for batch, *sizes in ((4, 5, 6), (2, 40, 37), (64, 6, 5), (2, 70, 8)):
        leaves = inputs(batch, *sizes)
        got, expected = compiled(*leaves), block(*leaves)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
        grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (got, expected)]
        for g, e in zip(*grads, strict=True):
            torch.testing.assert_close(g, e, rtol=0, atol=1e-10 * e.abs().max())
    assert counter.frame_count == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled_output_lies_in_memory_as_the_eager_one(layout):
    u, *rest = inputs(2, 4, 5)
    u = u.detach().contiguous(memory_format=layout)  # which needs no gradient, like a network's images
    got, expected = torch.compile(block, backend="aot_eager", fullgraph=True)(u, *rest), block(u, *rest)
    assert got.stride() == expected.stride()
    for g, e in zip(*(torch.autograd.grad(y.sum(), rest) for y in (got, expected)), strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-12 * e.abs().max())


def test_transforms_inside_a_compiled_function():
    leaves = [x.detach() for x in inputs(2, 4, 5)]
    functions = (
        lambda *x: vmap(block, (0, None, None, None))(torch.stack([x[0], 2 * x[0]]), *x[1:]),
        lambda *x: grad(lambda *x: block(*x).sum(), 1)(*x),
        lambda *x: jvp(block, x, x)[1],
    )
    for f in functions:
        got, expected = torch.compile(f, backend="aot_eager", fullgraph=True)(*leaves), f(*leaves)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * expected.abs().max())


def test_operators_keep_the_rules_of_torchs_library():
    from s4nd.conv.compiled import conv

    u, *kernels, skip = inputs(2, 4, 5)
    torch.library.opcheck(conv, (u, skip, kernels, "auto", [1, 1]))
    torch.library.opcheck(conv, (u.detach(), None, kernels, "fft", [1, 1]))
