"""captum's attributions of 2-D and 3-D models against their axioms, and against autograd and plain evaluations."""

import pytest
import torch

from tests.small import SIZES, build, images

attr = pytest.importorskip("captum.attr", reason="needs captum: pip install captum")

LAST = {
    "s4nd_iso_tiny": lambda m: m.blocks[-1],
    "s4nd_convnext_micro": lambda m: m.stages[1],
    "s4nd_convnext3d_micro": lambda m: m.stages[1],
}
NUMBERS = [0, 1]  # of SIZES: the trained one and another
TARGET = 2

pytestmark = [
    pytest.mark.parametrize("number", NUMBERS),
    pytest.mark.parametrize("name", LAST),
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning:captum"),
]


def total(x):
    return x.flatten(1).sum(1)


def close(actual, expected):
    """Sums of thousands of terms in another order, in float64; captum adds up what windows lose in float32."""
    scale = 1e-11 if actual.dtype == torch.float64 else 1e-6
    expected = expected.to(actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=scale * expected.abs().max().item())


def test_integrated_gradients_add_up_to_the_difference_of_the_logits(name, number):
    """Gauss-Legendre's error at least halves when the steps double, so their difference bounds that of the more steps."""
    model, x = build(name), images(name, number, batch=1)
    with torch.no_grad():
        difference = (model(x) - model(torch.zeros_like(x)))[:, TARGET]
    method, sums = attr.IntegratedGradients(model), []
    for steps in (6, 12):
        found, delta = method.attribute(x, target=TARGET, n_steps=steps, return_convergence_delta=True)
        assert found.shape == x.shape
        close(total(found) - delta, difference)
        sums.append(total(found))
    error = (sums[1] - difference).abs()
    assert (error <= (sums[1] - sums[0]).abs() + 1e-12).all()
    assert (error < 1e-2 * difference.abs()).all()


def test_saliency_is_the_absolute_gradient(name, number):
    model, x = build(name), images(name, number, batch=1).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, TARGET].sum(), x)
    close(attr.Saliency(model).attribute(x, target=TARGET), gradient.abs())


def test_layer_grad_cam_weighs_the_features_by_their_mean_gradients(name, number):
    model, x = build(name), images(name, number, batch=1)
    layer, kept = LAST[name](model), []
    hook = layer.register_forward_hook(lambda module, args, y: kept.append(y))
    logit = model(x)[:, TARGET].sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(logit, kept[0])
    grid = tuple(range(2, x.ndim))
    expected = (gradient.mean(grid, keepdim=True) * kept[0]).sum(1, keepdim=True)
    close(attr.LayerGradCam(model, layer).attribute(x, target=TARGET), expected)


@torch.no_grad()
def test_ablation_of_halves_is_what_the_logit_loses_without_them(name, number):
    model, x = build(name), images(name, number, batch=1)
    half = x.shape[-1] // 2
    mask = torch.zeros((1, *x.shape[1:]), dtype=torch.long)
    mask[..., half:] = 1
    found = attr.FeatureAblation(model).attribute(x, target=TARGET, feature_mask=mask)
    for part in (0, 1):
        lost = (model(x) - model(torch.where(mask == part, 0.0, x)))[:, TARGET]
        expected = lost.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)
        close(found[:, (mask == part)[0]], expected[:, (mask == part)[0]])


@torch.no_grad()
def test_occlusion_is_what_the_logit_loses_under_the_window(name, number):
    model, x = build(name), images(name, number, batch=1)
    size = SIZES[name][number]
    window = (3, *size[:-1], (size[-1] + 1) // 2)  # two windows, left and right; the last one may reach over the edge
    found = attr.Occlusion(model).attribute(x, sliding_window_shapes=window, strides=window, target=TARGET)
    alone = (..., slice(size[-1] - window[-1]))  # what the second window does not reach
    left = x.clone()
    left[..., : window[-1]] = 0
    lost = (model(x) - model(left))[:, TARGET]
    close(found[alone], lost.reshape(-1, *[1] * (x.ndim - 1)).expand_as(found)[alone])
