"""base_size of every S4ND layer of the models against the grid that the layer meets at the trained size."""

from itertools import product

import pytest
import timm
import torch
from timm.models import ConvNeXt

import s4nd.models  # noqa: F401  registers the models
from s4nd import S4ND
from s4nd.models.stages import stage_grids

SIZES = [(64, 64), (69, 101)]
STEMS = [dict(patch_size=p) for p in (1, 2, 3, 4, 8, 16)]
STEMS += [dict(stem_type=t) for t in ("overlap", "overlap_tiered", "overlap_act")]
ALL_S4ND = dict(stem="s4nd", downsample="s4nd", stem_channels=2)
OPTIONS = [*STEMS, *(dict(ALL_S4ND, patch_size=p) for p in (2, 4, 8)), dict(downsample="s4nd")]
OPTIONS += [dict(downsample="s4nd", stem_type="overlap"), dict(dims=(4, 4, 4, 4)), dict(depths=(1, 0, 1, 1))]
CONVNEXT = dict(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), d_state=2, kernel="s4d", num_classes=2)
VIT = dict(embed_dim=4, depth=1, num_heads=1, d_state=2, kernel="s4d", init="lin", num_classes=2)


def convnext(frames=None, **args):
    name = "s4nd_convnext_tiny" if frames is None else "s4nd_convnext3d_tiny"
    own = dict(init="lin") if frames is None else dict(num_frames=frames)
    return timm.create_model(name, **{**CONVNEXT, **own, **args}).eval()


def met(model, *size):
    """Every S4ND layer that a run at this size meets, with its grid there."""
    found = {}
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, _: found.update({layer: tuple(inputs[0].shape[2:])}))
        for layer in model.modules()
        if isinstance(layer, S4ND)
    ]
    with torch.no_grad():
        model(torch.randn(1, 3, *size))
    for hook in hooks:
        hook.remove()
    assert set(found) == {m for m in model.modules() if isinstance(m, S4ND)}
    return found


def assert_trained_there(model, *size):
    for layer, grid in met(model, *size).items():
        assert layer.base_size == grid
        assert [layer.rate(i, n) for i, n in enumerate(grid)] == [1.0] * len(grid)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("frames", [None, 5])
def test_every_layer_of_a_convnext_is_at_rate_one_at_the_trained_size(frames, options):
    clip = [frames] if frames else []
    model = convnext(frames, img_size=SIZES[0], **options)
    assert_trained_there(model, *clip, *SIZES[0])
    for size in SIZES[1:]:
        assert_trained_there(convnext(frames, img_size=size, **options), *clip, *size)
        model.set_input_size(size)
        assert_trained_there(model, *clip, *size)


@pytest.mark.parametrize("frames", [None, 4])
@pytest.mark.parametrize("options", [*STEMS[:4], *STEMS[6:], *OPTIONS[9:11]], ids=str)
def test_features_have_the_strides_that_they_claim(frames, options):
    model = convnext(frames, img_size=64, **options)
    x = torch.randn(1, 3, *([frames] if frames else []), 96, 96)
    for info, features in zip(model.feature_info, model.forward_intermediates(x, intermediates_only=True), strict=True):
        assert features.shape[-2:] == (96 // info["reduction"],) * 2


@pytest.mark.parametrize("frames", [None, 4])
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("options", [dict(), dict(patch_size=2), dict(patch_size=8), ALL_S4ND], ids=str)
def test_output_stride_reads_the_last_stages_at_a_smaller_step(frames, stride, options):
    """base_size is the grid that the layer would have without it, after set_input_size too."""
    clip = [frames] if frames else []
    model = convnext(frames, img_size=SIZES[0], output_stride=stride, **options)
    for size in SIZES:
        model.set_input_size(size)
        without = met(convnext(frames, img_size=size, **options), *clip, *size)
        for other in (model, convnext(frames, img_size=size, output_stride=stride, **options)):
            found = met(other, *clip, *size)
            assert [layer.base_size for layer in found] == list(without.values())
            last = other.stages[-1].blocks[0].conv_dw
            assert all(n > base for n, base in zip(found[last][-2:], last.base_size[-2:], strict=True))
    assert met(model, *clip, 96, 64)[model.stages[-1].blocks[0].conv_dw][-2:] == (96 // stride, 64 // stride)


def test_grids_are_those_of_timms_own_network():
    for stem, size in product(STEMS, SIZES):
        flat = ConvNeXt(depths=(1,) * 4, dims=(8,) * 4, **stem)
        features = flat.forward_intermediates(torch.randn(1, 3, *size), intermediates_only=True)
        assert stage_grids(size, **stem)[1:] == [tuple(f.shape[2:]) for f in features]


def test_asking_for_the_grids_draws_no_random_number():
    state = torch.get_rng_state()
    stage_grids((64, 64))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("stem", "least"), [(dict(patch_size=8), 32), (dict(stem_type="overlap"), 29)], ids=str)
def test_the_least_size_is_the_stems(stem, least):
    convnext(img_size=least, **stem)
    with pytest.raises(ValueError, match=rf"img_size must be at least {least} for 4 stages, got \({least - 1}, 64\)"):
        convnext(img_size=(least - 1, 64), **stem)


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("patch_size", [4, 7, (8, 4)])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("pad", [True, False])
def test_every_layer_of_a_vit_is_at_rate_one_at_the_trained_size(ndim, patch_size, dynamic, pad):
    """Padding, timm's patch embedding makes whole patches of any size; without it and at one size only, it cuts."""
    args = dict(VIT, patch_size=patch_size, mixer_ndim=ndim, dynamic_img_size=dynamic, dynamic_img_pad=pad)
    sizes = [(56, 56), (45, 30)] if pad or not dynamic else [(56, 56), (56, 112)]
    model = timm.create_model("s4nd_vit_tiny_patch16_224", img_size=sizes[0], **args).eval()
    assert_trained_there(model, *sizes[0])
    assert_trained_there(timm.create_model(model.default_cfg["architecture"], img_size=sizes[1], **args), *sizes[1])
    model.set_input_size(sizes[1])
    assert_trained_there(model, *sizes[1])
    model.set_input_size(patch_size=14 if dynamic and not pad else 5)
    assert_trained_there(model, *sizes[1])
