"""The fast forms of the Cauchy product against its definition, and their gradients against differences and float64."""

import functools

import pytest
import torch
from torch.func import vmap

from s4nd.ops import blocks, cauchy
from s4nd.ops.cauchy import _operator, cauchy_definition, cauchy_torch

F64 = torch.float64
KEOPS = functools.partial(cauchy, backend="keops")
NAMES = ("w", "x", "z")
pytestmark = pytest.mark.filterwarnings("default")  # of pykeops and the compiler's own parts


def arguments(J=3, H=2, N=4, L=6, dtype=F64, per_head=False):
    """Weights, poles of the left half plane, and nodes of the right one, the first of them close beside a pole."""
    torch.manual_seed(0)
    x = torch.stack([-torch.rand(H, N, dtype=dtype), 3 * torch.randn(H, N, dtype=dtype)], dim=-1)
    shape = (H, L) if per_head else (L,)
    z = torch.stack([torch.rand(shape, dtype=dtype), 3 * torch.randn(shape, dtype=dtype)], dim=-1)
    z[..., 0, :] = x[0, 0] + torch.tensor([1e-3, 1e-3], dtype=dtype)
    return torch.randn(J, H, N, 2, dtype=dtype), x, z


def forms():
    return [pytest.param(cauchy_torch, id="torch"), pytest.param(KEOPS, id="keops")]


@pytest.fixture(autouse=True)
def keops_is_there(request):
    if "keops" in request.node.name:
        pytest.importorskip("pykeops", reason="needs the extra: pip install 's4nd[keops]'")


@pytest.mark.parametrize("form", forms())
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(("J", "N", "L"), [(1, 1, 1), (3, 4, 7), (6, 5, 100)])
def test_cauchy_equals_its_definition(form, J, N, L, per_head):
    w, x, z = arguments(J, 2, N, L, per_head=per_head)
    expected = cauchy_definition(w, x, z)
    # Beside the pole a quotient is 1e3, of whose 2N terms each has a few roundings.
    torch.testing.assert_close(form(w, x, z), expected, rtol=0, atol=1e-13 * expected.abs().max())


def test_definition_is_the_sum_of_complex_quotients():
    w, x, z = arguments()
    a, b, c = (torch.view_as_complex(t) for t in (w[..., None, :, :], x[:, None], z[:, None]))
    expected = (a / (c - b) + a.conj() / (c - b.conj())).sum(-1)
    torch.testing.assert_close(torch.view_as_complex(cauchy_definition(w, x, z)), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("elements", [1, 40, 2**20])  # a block for each node, several, one
def test_blocks_change_nothing(monkeypatch, elements):
    leaves = [t.requires_grad_() for t in arguments(L=11)]
    results = []
    for size in (elements, 2**30):
        monkeypatch.setattr(blocks, "ELEMENTS", size)
        y = cauchy_torch(*leaves)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for some, whole in zip(*results, strict=True):
        torch.testing.assert_close(some, whole, rtol=1e-12, atol=1e-12 * whole.abs().max().item())


@pytest.mark.parametrize("per_head", [False, True])
def test_cauchy_gradients_of_first_and_second_order(per_head):
    leaves = [t.requires_grad_() for t in arguments(2, 2, 3, 4, per_head=per_head)]
    leaves[2].data[..., 0, :] += 1  # differences need room beside a pole
    assert torch.autograd.gradcheck(cauchy_torch, leaves)
    assert torch.autograd.gradgradcheck(cauchy_torch, leaves, fast_mode=True)


@pytest.mark.parametrize("form", forms())
@pytest.mark.parametrize(("J", "H", "N", "L"), [(64, 32, 1, 1), (16, 8, 5, 7), (3, 2, 8, 1001)])
def test_float32_is_as_exact_as_the_definition(form, J, H, N, L):
    """Value and every gradient err by no more than twice what the definition errs by in float32, against float64: of many
    numbers, none beside a pole, where one alone would decide by its luck in rounding."""
    inputs = arguments(J, H, N, L, torch.float32, per_head=True)
    inputs[2][:, 0] += 1
    probe = torch.randn(J, H, L, 2)

    def run(form, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        y = form(*leaves)
        return y, *torch.autograd.grad((y * probe.to(dtype)).sum(), leaves)

    exact, plain, got = run(cauchy_definition, F64), run(cauchy_definition, torch.float32), run(form, torch.float32)
    for name, e, p, g in zip(("value", *NAMES), exact, plain, got, strict=True):
        error, allowed = ((t - e).norm() / e.norm() for t in (g, p))
        assert error <= 2 * allowed, (name, error, allowed)


@pytest.mark.parametrize("form", forms())
def test_quotient_beside_a_pole_keeps_its_digits_in_float32(form):
    """A thousandth from a pole of size 3, where z^2 - 2 p z + |x|^2 would be wrong in the third digit."""
    w, x, z = arguments(1, 1, 1, 1, torch.float32)
    exact = cauchy_definition(w.double(), x.double(), z.double())
    assert ((form(w, x, z) - exact).norm() / exact.norm()) < 8 * torch.finfo(torch.float32).eps


def test_keops_gradients_equal_those_of_the_definition():
    leaves = [t.requires_grad_() for t in arguments()]
    probe = torch.randn(3, 2, 6, 2, dtype=F64)
    expected, got = (torch.autograd.grad((f(*leaves) * probe).sum(), leaves) for f in (cauchy_definition, KEOPS))
    for name, e, g in zip(NAMES, expected, got, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-11 * e.abs().max().item(), msg=name)


def test_operator_keeps_torchs_contract():
    w, x, z = arguments(per_head=True)
    leaves = [t.requires_grad_() for t in (w, x, z)]
    torch.library.opcheck(_operator, tuple(leaves))
    torch.testing.assert_close(_operator(*leaves), cauchy_definition(*leaves), rtol=0, atol=1e-10)


def test_compiled_and_batched_calls_are_the_same():
    w, x, z = arguments()
    expected = cauchy_torch(w, x, z)
    compiled = torch.compile(cauchy_torch, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(w, x, z), expected, rtol=1e-12, atol=0)
    many = torch.stack([w, 2 * w])
    torch.testing.assert_close(vmap(lambda w: cauchy_torch(w, x, z))(many)[1], 2 * expected, rtol=1e-12, atol=0)


def test_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"backend must be one of \('auto', 'torch', 'keops', 'triton'\), got 'cuda'"):
        cauchy(*arguments(), backend="cuda")


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.bytes = max(self.bytes, t.numel() * t.element_size())
        return out


def test_no_matrix_of_all_poles_and_nodes_is_made():
    """Forward and backward, the largest tensor is the result or a block, whatever the number of nodes."""
    leaves = [t.requires_grad_() for t in arguments(1, 2, 64, 100_000, torch.float32)]
    with Largest() as largest:
        cauchy_torch(*leaves).sum().backward()
    assert largest.bytes <= max(8 * blocks.ELEMENTS, 4 * 2 * 2 * 100_000) < 4 * 2 * 64 * 100_000
