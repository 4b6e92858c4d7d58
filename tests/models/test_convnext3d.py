"""What the convolutional video models are made of: factored convolutions, response normalisation, a door for clips alone."""

import pytest
import timm
import torch
from timm.models import ConvNeXt
from torch import nn

from s4nd.models import inflate
from s4nd.models.convnext3d import FactoredConv3d

F64 = torch.float64


def small(**args):
    torch.manual_seed(0)
    args = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), ls_init_value=1.0) | args
    return timm.create_model("convnext_i3d_tiny", **args).to(F64).eval()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "groups"),
    [((2, 4, 4), (2, 4, 4), (0, 0, 0), 1), ((1, 2, 2), (1, 2, 2), (0, 0, 0), 1), ((3, 7, 7), (1, 1, 1), (1, 3, 3), 4)],
)
def test_factored_convolution_is_the_convolution_with_the_product_kernel(kernel_size, stride, padding, groups):
    torch.manual_seed(0)
    args = dict(stride=stride, padding=padding, groups=groups, dtype=F64)
    factored, whole = FactoredConv3d(4, 8, kernel_size, **args), nn.Conv3d(4, 8, kernel_size, **args)
    nn.init.normal_(factored.time_weight)
    whole.weight.data = factored.weight.data[:, :, None] * factored.time_weight.data[:, None, None]
    whole.bias.data = factored.bias.data
    x = torch.randn(2, 4, 5, 9, 12, dtype=F64)
    assert_close(factored(x), whole(x))


def test_response_normalisation_is_over_the_whole_clip():
    model = small(use_grn=True)
    block, x = model.stages[0].blocks[0], torch.randn(2, 8, 3, 8, 10, dtype=F64)
    nn.init.normal_(block.mlp.grn.weight)
    hidden = block.mlp.act(block.mlp.fc1(block.norm(x.movedim(1, -1))))
    size = hidden.square().sum((1, 2, 3), keepdim=True).sqrt()
    ratio = size / (size.mean(-1, keepdim=True) + block.mlp.grn.eps)
    y = block.mlp.fc2(hidden + block.mlp.grn.weight * hidden * ratio)
    assert_close(block.residual(x, x), x + (block.gamma * y).movedim(-1, 1))


def test_frames_before_channels_is_an_error_that_says_how_to_permute():
    x = torch.randn(1, 6, 3, 64, 64, dtype=F64)
    with pytest.raises(
        ValueError, match=r"must be \(B, 3, frames, height, width\), got \(1, 6, 3, 64, 64\).*permute\(0, 2, 1"
    ):
        small()(x)
    with pytest.raises(ValueError, match=r"got \(1, 3, 64, 64\)$"):
        small()(x.transpose(1, 2)[:, :, 0])


STEMS = [dict(patch_size=2), dict(patch_size=8), dict(stem_type="overlap"), dict(stem_type="overlap_act")]


@pytest.mark.parametrize("kind", ["i3d", "s3d"])
@pytest.mark.parametrize("args", [*STEMS, dict(output_stride=8), dict(head_norm_first=True, norm_eps=1e-3)], ids=str)
def test_every_stem_and_stride_of_timm_has_the_images_features_on_a_clip_of_one_image(kind, args):
    torch.manual_seed(0)
    args = dict(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), ls_init_value=1.0, num_classes=2) | args
    flat, model = ConvNeXt(**args).to(F64).eval(), timm.create_model(f"convnext_{kind}_tiny", **args).to(F64).eval()
    for parameter in flat.parameters():
        nn.init.normal_(parameter, std=0.3)
    inflate(flat, model)
    x = torch.randn(1, 3, 70, 101, dtype=F64)
    clip = x[:, :, None].expand(-1, -1, 18, -1, -1)
    assert_close(
        model.forward_features(clip)[:, :, 4], flat.forward_features(x)
    )  # a patch as far from the ends as blocks
    assert [i["reduction"] for i in model.feature_info] == [i["reduction"] for i in flat.feature_info]
