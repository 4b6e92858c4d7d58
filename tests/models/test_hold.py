"""Convolutions whose taps are held over the trained pixels: against the convolution itself and overlaps by fractions."""

import copy
from fractions import Fraction

import pytest
import timm
import torch
from torch import nn

import s4nd
from s4nd.models import ResampledConv2d, hold_convolutions
from s4nd.models.hold import shares

F64 = torch.float64
# kernel_size, stride, padding, dilation
CONVOLUTIONS = [
    *[(3, 1, 1, 1), (7, 1, 3, 1), (4, 4, 0, 1), (2, 2, 0, 1), (3, 2, 1, 1)],
    *[(7, 2, 3, 1), (3, 1, 2, 2), (5, 3, 1, 1), (2, 1, 0, 1)],
]


def conv(k, s, p, d, groups=1):
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, k, s, p, d, groups, dtype=F64)


@pytest.mark.parametrize("k, s, p, d", CONVOLUTIONS)
def test_at_the_trained_size_nothing_changes(k, s, p, d):
    plain, x = conv(k, s, p, d, groups=2), torch.randn(2, 4, 12, 9, dtype=F64)
    assert torch.equal(ResampledConv2d.of(plain, (12, 9))(x), plain(x))


@pytest.mark.parametrize("k, s, p, d", CONVOLUTIONS)
@pytest.mark.parametrize("n", [7, 16, 18, 24, 30])
def test_pixels_take_their_shares_of_every_tap(k, s, p, d, n, b=12):
    first, A = shares(n, b, "hold", k, s, p, d)
    w, centre = Fraction(n, b), Fraction(s, 2)
    wanted = torch.zeros_like(A)
    for q in range(len(A)):
        for a in range(k):
            low, high = (first + q - centre) / w, (first + q + 1 - centre) / w
            begin = a * d - p - centre
            wanted[q, a] = float(max(min(high, begin + 1) - max(low, begin), 0))
    torch.testing.assert_close(A, wanted, rtol=0, atol=1e-14)
    torch.testing.assert_close(A.sum(0), torch.ones(k, dtype=F64), rtol=0, atol=1e-14)  # every tap is taken as a whole


@pytest.mark.parametrize("k, s, p, d", CONVOLUTIONS)
@pytest.mark.parametrize("n", [7, 10, 16, 18, 24, 30])
def test_dilated_taps_are_shared_by_the_pixels_next_to_where_they_lie(k, s, p, d, n, b=12):
    first, A = shares(n, b, "dilate", k, s, p, d)
    w, centre, half = Fraction(n, b), Fraction(s, 2), Fraction(1, 2)
    wanted = torch.zeros_like(A)
    for q in range(len(A)):
        for a in range(k):
            distance = (first + q + half - centre) - w * (a * d - p + half - centre)
            wanted[q, a] = float(max(0, 1 - abs(distance)))
    torch.testing.assert_close(A, wanted, rtol=0, atol=1e-14)
    torch.testing.assert_close(A.sum(0), torch.ones(k, dtype=F64), rtol=0, atol=1e-14)  # every tap is taken as a whole


@pytest.mark.parametrize("k", [3, 5])
def test_dilated_by_a_whole_number_it_is_the_dilated_convolution(k):
    plain, x = conv(k, 1, k // 2, 1), torch.randn(1, 4, 24, 36, dtype=F64)
    layer = ResampledConv2d.of(plain, (12, 12))
    layer.resample = "dilate"
    wanted = nn.functional.conv2d(x, plain.weight, plain.bias, padding=(k // 2 * 2, k // 2 * 3), dilation=(2, 3))
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-13)


def test_convolutions_take_the_ways_of_a_model_and_no_others():
    model = timm.create_model("conv_iso_tiny", img_size=8)
    hold_convolutions(model, 8)
    s4nd.set_resample(model, "hold+dilate")
    assert [block.mixer.conv.resample[0] for block in model.blocks] == ["hold", "dilate", "dilate", "dilate"]
    with pytest.raises(ValueError, match=r"resample of a convolution must be one of \('hold', 'dilate'\)"):
        s4nd.set_resample(model, "continuous")
    assert model.blocks[0].mixer.conv.resample == ("hold", "hold")


@pytest.mark.parametrize("k, s, p, d", CONVOLUTIONS)
@pytest.mark.parametrize("w", [3, 5])
def test_signal_constant_over_trained_pixels_is_answered_as_there_at_the_outputs_centres(k, s, p, d, w):
    plain, x = conv(k, s, p, d), torch.randn(1, 4, 12, 12, dtype=F64)
    fine = ResampledConv2d.of(plain, (12, 12))(x.repeat_interleave(w, 2).repeat_interleave(w, 3))
    y = plain(x)
    outputs = [o for o in range(y.shape[-1]) if w * o + w // 2 < fine.shape[-1]]
    places = [w * o + w // 2 for o in outputs]
    torch.testing.assert_close(fine[..., places, :][..., places], y[..., outputs, :][..., outputs], rtol=0, atol=1e-12)


@pytest.mark.parametrize("k, s, p, d", CONVOLUTIONS)
@pytest.mark.parametrize("n", [8, 16, 25])
def test_output_has_the_size_of_the_convolutions(k, s, p, d, n):
    x = torch.randn(1, 4, n, n + 3, dtype=F64)
    plain = conv(k, s, p, d)
    assert ResampledConv2d.of(plain, (12, 12))(x).shape == plain(x).shape


@pytest.mark.parametrize("name", ["conv_iso_tiny", "convnext_atto", "resnet18", "s4nd_convnext_tiny"])
def test_models_are_held_in_place_and_stay_the_same_at_their_size(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    plain, keys = copy.deepcopy(model), {key for key in model.state_dict() if not key.endswith("_extra_state")}
    names = hold_convolutions(model, 64)
    assert names and all(isinstance(model.get_submodule(each), ResampledConv2d) for each in names)
    assert {key for key in model.state_dict() if not key.endswith("_extra_state")} == keys
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(model(x), plain(x))
        x = torch.randn(1, 3, 96, 128)
        assert not torch.allclose(model(x), plain(x), rtol=1e-2)
    assert hold_convolutions(model, 64) == []


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("downsample", ["s4nd", "conv"])
def test_network_that_does_not_begin_with_a_convolution_is_held(downsample, in_chans):
    args = dict(img_size=32, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), stem_channels=4, in_chans=in_chans)
    model = timm.create_model("s4nd_convnext_micro", downsample=downsample, **args)
    assert len(hold_convolutions(model, 32)) == (3 if downsample == "conv" else 0)
    s4nd.set_resample(model, "hold+dilate")
    assert model.stem[0].resample == ("hold", "hold")
    assert model(torch.randn(1, in_chans, 48, 48)).isfinite().all()


@pytest.mark.parametrize("first", [s4nd.S4ND(2, base_size=8), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)])
def test_model_that_is_not_timms_sees_the_channels_that_its_first_layer_takes(first):
    model = nn.Sequential(first, nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 3, padding=1))
    assert hold_convolutions(model, 8) == ["2"]
    assert model[2].base_size == (8, 8)


def test_grid_travels_with_the_weights_and_is_not_dropped_in_silence():
    model = timm.create_model("conv_iso_tiny", img_size=8)
    plain, other = copy.deepcopy(model), copy.deepcopy(model)
    hold_convolutions(model, 8)
    hold_convolutions(other, 16)
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 24, 24)
    assert torch.equal(other.eval()(x), model.eval()(x))
    with pytest.raises(RuntimeError, match="_extra_state"):
        plain.load_state_dict(model.state_dict())


def test_gradients_are_those_of_the_taps():
    held = ResampledConv2d.of(conv(3, 1, 1, 1), (4, 4))
    x = torch.randn(1, 4, 6, 7, dtype=F64)
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(held, {"weight": weight}, (x,)),
        (held.weight.detach().requires_grad_(),),
    )


def test_convolution_that_does_more_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"))
    with pytest.raises(ValueError, match="0 cannot be held: it is a Conv2d with padding_mode='circular'"):
        hold_convolutions(model, 8)
    with pytest.raises(ValueError, match="Conv2dSame"):
        hold_convolutions(timm.create_model("tf_efficientnet_b0"), 64)
    with pytest.raises(ValueError, match="pads its sides differently"):
        hold_convolutions(nn.Sequential(nn.Conv2d(3, 3, 4, padding="same")), 8)
