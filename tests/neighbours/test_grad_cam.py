"""pytorch-grad-cam's maps against the same maps from autograd alone, where the network is cut after its last block."""

import pytest
import torch

from tests.small import build

pytest.importorskip("pytorch_grad_cam", reason="needs pytorch-grad-cam: pip install grad-cam")

from pytorch_grad_cam import EigenCAM, GradCAM, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

CLASSES = [1, 3]  # of the two images


def channels_first(x):
    """Of the patches (B, h, w, D), as the blocks of an S4ND-ViT have them."""
    return x.permute(0, 3, 1, 2)


# The last block, the rest of the network after its features (B, C, h, w), and what reshape_transform is needed.
MODELS = {
    "s4nd_iso_tiny": (lambda m: m.blocks[-1], lambda m, A: m.forward_head(m.norm(A)), None),
    "s4nd_convnext_micro": (lambda m: m.stages[-1], lambda m, A: m.forward_head(m.norm_pre(A)), None),
    "s4nd_vit_tiny_patch16_224": (
        lambda m: m.blocks[-1],
        lambda m, A: m.forward_head(m.norm(A.flatten(2).mT)),
        channels_first,
    ),
}
# Sizes at which the last features have a few samples; the first is the trained one.
SIZES = {
    "s4nd_iso_tiny": [(8, 8), (7, 10)],
    "s4nd_convnext_micro": [(128, 128), (96, 160)],
    "s4nd_vit_tiny_patch16_224": [(32, 32), (24, 48)],
}


def first_component(A):
    """(B, C, h, w) -> (B, h, w): the features along the direction in which they vary most; its sign is not determined."""
    centred = A.flatten(2) - A.flatten(2).mean(2, keepdim=True)  # (B, C, h w)
    direction = torch.linalg.eigh(centred @ centred.mT).eigenvectors[..., -1]
    return torch.einsum("bc,bcl->bl", direction, centred).unflatten(1, A.shape[2:])


# The methods by their formulas: features A and gradients G, (B, C, h, w), to a map (B, h, w).
FORMULAS = {
    GradCAM: lambda A, G: (G.mean((2, 3), keepdim=True) * A).sum(1),
    HiResCAM: lambda A, G: (G * A).sum(1),
    LayerCAM: lambda A, G: (G.relu() * A).sum(1),
    EigenCAM: lambda A, G: first_component(A),
}


def by_hand(model, head, x, method):
    """The map before it is scaled, (B, h, w)."""
    A = model.forward_intermediates(x, indices=[-1], intermediates_only=True)[0].detach().requires_grad_()
    chosen = head(model, A).gather(1, torch.tensor(CLASSES)[:, None]).sum()
    (G,) = torch.autograd.grad(chosen, A)
    return FORMULAS[method](A.detach(), G)


def shown(maps, size):
    """Positive parts, each map brought to [0, 1] and to the size of the images, as the package shows them."""
    once = scale_cam_image(maps.relu().numpy().astype("float32"), size[::-1])
    return torch.from_numpy(scale_cam_image(once))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("name", MODELS)
def test_maps_are_those_of_the_formula(name, method, number):
    last, head, reshape = MODELS[name]
    size = SIZES[name][number]
    model = build(name, dtype=torch.float32, img_size=SIZES[name][0])
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(number))
    with method(model=model, target_layers=[last(model)], reshape_transform=reshape) as cam:
        found = torch.from_numpy(cam(x, [ClassifierOutputTarget(label) for label in CLASSES]))
    assert found.shape == (2, *size) and found.amin() == 0 and (found.amax((1, 2)) > 0.99).all()
    raw = by_hand(model, head, x, method)
    signs = [1, -1] if method is EigenCAM else [1]
    # float32: sums of some tens of products in other orders, then divided by the largest: 1e-4 of it.
    for i in range(2):
        assert min((found - shown(sign * raw, size))[i].abs().max() for sign in signs) < 1e-4


def test_maps_take_no_gradient_of_the_model_away():
    model = build("s4nd_iso_tiny", dtype=torch.float32)
    with GradCAM(model=model, target_layers=[model.blocks[-1]]) as cam:
        cam(torch.randn(1, 3, 8, 8), [ClassifierOutputTarget(0)])
    model.zero_grad()
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
