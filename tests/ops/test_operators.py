"""Operators for the compiler against the functions they are made of, and kernels compiled against eager ones."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from s4nd.nn.kernels import KERNELS
from s4nd.ops.vandermonde import _operator as vandermonde
from s4nd.ops.vandermonde import vandermonde_definition
from s4nd.ssm.loop import _definition
from s4nd.ssm.loop import _operator as through_loop

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("default")  # of the compiler's own parts


def weights_and_poles(*batch: int):
    torch.manual_seed(0)
    x = torch.stack([-torch.rand(*batch, 3, 4, dtype=F64), torch.randn(*batch, 3, 4, dtype=F64)], dim=-1)
    return torch.randn(*batch, 2, 3, 4, 2, dtype=F64), x


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("L", [1, 5])
def test_vandermonde_operator_keeps_torchs_contract_and_its_definition(L, centre):
    w, x = (t.requires_grad_() for t in weights_and_poles())
    torch.library.opcheck(vandermonde, (w, x, L, centre))
    torch.testing.assert_close(
        vandermonde(w, x, L, centre), vandermonde_definition(w, x, L, centre), rtol=0, atol=1e-13
    )
    assert torch.autograd.gradcheck(lambda w, x: vandermonde(w, x, L, centre), (w, x))


@pytest.mark.parametrize("centre", [False, True])
def test_loop_operator_keeps_torchs_contract_and_its_definition(centre):
    g = torch.rand(5, 2, 6, dtype=F64).requires_grad_()  # two outputs, the loop, two inputs
    torch.library.opcheck(through_loop, (g, 2, 2, centre))
    atol = 4 * torch.finfo(F64).eps ** (2 / 3)
    torch.testing.assert_close(through_loop(g, 2, 2, centre), _definition(g, 2, 2, centre), rtol=0, atol=atol)
    assert torch.autograd.gradcheck(lambda g: through_loop(g, 2, 2, centre), (g,))


def test_batch_of_vmap_is_more_heads():
    w, x = weights_and_poles(4)
    expected = torch.stack([vandermonde(a, b, 5, True) for a, b in zip(w, x, strict=True)])
    torch.testing.assert_close(torch.vmap(lambda w, x: vandermonde(w, x, 5, True))(w, x), expected, rtol=0, atol=1e-13)
    expected = torch.stack([vandermonde(a, x[0], 5, True) for a in w])
    got = torch.vmap(lambda w: vandermonde(w, x[0], 5, True), in_dims=1)(w.transpose(0, 1))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("name", "align"), [*((name, "centre") for name in KERNELS), ("s4", "edge"), ("s4d", "edge")])
def test_compiled_kernel_and_gradients_equal_eager_ones_at_every_size_compiled_once(name, align):
    torch.compiler.reset()
    torch.manual_seed(0)
    kernel = KERNELS[name](4, 8, 2, dtype=F64)
    backend = CompileCounterWithBackend("aot_eager")
    on_axis = lambda u: kernel(u.shape[-1], 5 / u.shape[-1], align=align) * u  # noqa: E731
    compiled = torch.compile(on_axis, fullgraph=True, dynamic=True, backend=backend)
    counts = []
    for L in (7, 12):
        results = []
        for form in (on_axis, compiled):
            k = form(torch.arange(L, dtype=F64))
            grads = torch.autograd.grad(k.sum(), list(kernel.parameters()))
            results.append((k, *grads))
        for got, expected in zip(*reversed(results), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10 * max(1.0, expected.detach().abs().max()))
        counts.append(backend.frame_count)  # of the forward and of the backward graph
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", KERNELS)
def test_exported_kernel_needs_no_operator_of_ours(name):
    kernel = KERNELS[name](4, 8)
    program = torch.export.export(kernel, (6,), dict(align="centre"))
    assert "s4nd" not in str(program.graph_module.code)
    torch.testing.assert_close(program.module()(6, align="centre"), kernel(6, align="centre"), rtol=0, atol=1e-4)
