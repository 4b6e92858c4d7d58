"""Kernels computed together against the same kernels one after the other."""

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from s4nd import S4ND
from s4nd.nn.kernels import KERNELS
from s4nd.nn.kernels.side_by_side import alike

F64 = torch.float64
CASES = [(name, {}) for name in KERNELS] + [
    ("s4", dict(init="legt")),
    ("s4", dict(init="hippo", n_ssm=2)),
    ("s4", dict(tie_dt=False)),
    ("s4d", dict(n_ssm=2)),
    ("s4d", dict(n_ssm=None, A_constraint="none", disc="async")),
    ("s4d", dict(tie_dt=False, bandlimit=0.5, l_max=4)),
]


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_axes_together_have_the_kernels_and_gradients_of_each(name, options, align):
    torch.manual_seed(0)
    layer = S4ND(4, 3, d_state=8, kernel=name, channels=2, base_size=5, align=align, dtype=F64, **options)
    assert all(alike(layer.kernels[0], kernel) for kernel in layer.kernels)
    together, apart = layer.all_kernel_lags((7, 7, 7)), [layer.kernel_lags(axis, 7) for axis in range(3)]
    probes = [torch.randn_like(k) for k in apart]
    grads = [
        torch.autograd.grad(
            sum((k * p).sum() for k, p in zip(ks, probes, strict=True)), list(layer.kernels.parameters())
        )
        for ks in (together, apart)
    ]
    for got, expected in zip((*together, *grads[0]), (*apart, *grads[1]), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11 * max(1.0, expected.detach().abs().max()))


def test_axes_that_differ_are_computed_one_by_one():
    for options in (dict(init=["legs", "fout"]), dict(dt_min=[0.1, 0.2]), dict(n_ssm=[1, None])):
        layer = S4ND(4, d_state=8, **options)
        assert not alike(*layer.kernels)
        assert layer(torch.randn(1, 4, 5, 5)).isfinite().all()


def test_alike_axes_among_others_are_computed_together():
    torch.manual_seed(0)
    layer = S4ND(4, 4, d_state=8, bidirectional=[True, False, True, True], dtype=F64)
    got, expected = (
        layer.all_kernel_lags((5, 6, 7, 5)),
        [layer.kernel_lags(axis, n) for axis, n in enumerate((5, 6, 7, 5))],
    )
    for k, e in zip(got, expected, strict=True):
        torch.testing.assert_close(k, e, rtol=0, atol=1e-11 * e.detach().abs().max())
    calls = []
    for kernel in layer.kernels:
        kernel.register_forward_hook(lambda *_: calls.append(1))  # hooked, so one by one
    layer.all_kernel_lags((5, 6, 7, 5))
    assert len(calls) == 4


def test_hooked_and_parametrised_kernels_stay_on_their_own():
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    layer, u = S4ND(4, kernel="s4d", d_state=8, base_size=5, dtype=F64), torch.randn(1, 4, 5, 5, dtype=F64)
    calls = []
    layer.kernels[1].register_forward_hook(lambda *_: calls.append(1))
    layer(u)
    assert calls
    expected = S4ND(4, kernel="s4d", d_state=8, base_size=5, dtype=F64)
    expected.load_state_dict(layer.state_dict())
    with torch.no_grad():
        expected.kernels[0].C *= 2
    nn.utils.parametrize.register_parametrization(layer.kernels[0], "C", Doubled())
    torch.testing.assert_close(layer(u), expected(u), rtol=0, atol=1e-12)


@pytest.mark.parametrize("change", ["prune", "parametrize", "replica"])
def test_kernels_that_hold_their_parameters_otherwise_give_the_same(change):
    """Pruned and parametrised ones and replicas, as DataParallel makes them, are not computed together."""
    layer, u = S4ND(4, kernel="s4d", d_state=8, dtype=F64), torch.randn(1, 4, 5, 5, dtype=F64)
    expected = layer(u)
    for i, kernel in enumerate(layer.kernels):
        if change == "prune":
            nn.utils.prune.identity(kernel, "log_dt")
        elif change == "parametrize":
            nn.utils.parametrize.register_parametrization(kernel, "A_imag", nn.Identity())
        else:
            layer.kernels[i] = kernel._replicate_for_data_parallel()
            for name, value in kernel.named_parameters():
                setattr(layer.kernels[i], name, value.detach().clone())
    assert not alike(*layer.kernels)
    torch.testing.assert_close(layer(u), expected, rtol=0, atol=1e-12)
