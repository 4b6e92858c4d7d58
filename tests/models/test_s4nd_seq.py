"""Images as sequences, against sequences that are written down step by step and the layer applied to them."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

from s4nd import S4ND
from s4nd.ssm import DISCRETIZATIONS
from tests.small import F64, assert_close

SIZE = (5, 7)


def small(**args):
    torch.manual_seed(0)
    defaults = dict(img_size=SIZE, embed_dim=8, depth=2, d_state=4, dt_min=0.1, dt_max=1.0, dtype=F64)
    return timm.create_model("s4nd_seq_tiny", **{**defaults, **args}).eval()


def images(height, width, channels=3):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=F64)


def sequence(x, steps):
    """(B, channels of a step, L): step by step, as docs/guide/images.md says it."""
    _, channels, height, width = x.shape
    if steps == "pixel":
        each = [x[:, :, i, j] for i in range(height) for j in range(width)]
    else:
        each = [x[:, c : c + 1, i, j] for i in range(height) for j in range(width) for c in range(channels)]
    return torch.stack(each, dim=-1)


def layers(model):
    return [module for module in model.modules() if isinstance(module, S4ND)]


@pytest.mark.parametrize("steps", ["pixel", "value"])
@pytest.mark.parametrize("size", [SIZE, (6, 4)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_first_layer_is_applied_to_the_sequence_of_steps(steps, size, bidirectional):
    """A map of the channels and a norm at each step, then the layer over all of them."""
    model, x, found = small(steps=steps, bidirectional=bidirectional), images(*size), {}
    layer = layers(model)[0]
    layer.register_forward_hook(lambda _, inputs, y: found.update(u=inputs[0], y=y))
    features = model.forward_features(x)
    u = F.linear(sequence(x, steps).mT, model.stem.weight.flatten(1), model.stem.bias)
    norm = model.blocks[0].norm
    u = F.layer_norm(u, (8,), norm.weight, norm.bias, norm.eps).mT
    assert_close(found["u"], u)
    assert_close(found["y"], copy.deepcopy(layer)(u))
    height, width = size
    assert features.shape == (2, 8, height, width if steps == "pixel" else 3 * width)


@pytest.mark.parametrize("steps", ["pixel", "value"])
def test_features_lie_where_their_steps_are(steps):
    """With layers that only pass their input on, the model maps each step alone."""
    model = small(steps=steps)
    for layer in layers(model):
        torch.nn.init.ones_(layer.D)
        for kernel in layer.kernels:
            torch.nn.init.zeros_(kernel.C)
    x = images(*SIZE)
    single = small(steps="pixel", img_size=1, in_chans=3 if steps == "pixel" else 1)
    single.load_state_dict(model.state_dict() | {n: t for n, t in single.state_dict().items() if "_extra_state" in n})
    each = [single.forward_features(s[..., None, None])[..., 0, 0] for s in sequence(x, steps).unbind(-1)]
    assert_close(model.forward_features(x).flatten(2), torch.stack(each, dim=-1))


@pytest.mark.parametrize("steps", ["pixel", "value"])
@pytest.mark.parametrize("align", ["centre", "edge"])
def test_causal_features_do_not_depend_on_later_steps(steps, align):
    x = images(*SIZE)
    other = x.clone()
    other[:, 1, 2, 3] += 1  # in the middle
    step = 2 * 7 + 3 if steps == "pixel" else 3 * (2 * 7 + 3) + 1
    causal, two_sided = (
        [model.forward_features(image).flatten(2) for image in (x, other)]
        for model in (small(steps=steps, bidirectional=b, align=align) for b in (False, True))
    )
    # Convolutions by FFT mix all steps in their roundings.
    assert_close(causal[1][..., :step], causal[0][..., :step])
    assert (causal[1] - causal[0])[..., step:].abs().amax((0, 1)).min() > 1e-6
    assert (two_sided[1] - two_sided[0])[..., :step].abs().amax((0, 1)).min() > 1e-6


def test_both_readings_of_a_grey_image_are_one():
    pixels, values = (small(in_chans=1, steps=steps) for steps in ("pixel", "value"))
    x = images(6, 4, channels=1)
    assert torch.equal(pixels(x), values(x))


@pytest.mark.parametrize(("steps", "length", "longer"), [("pixel", 35, 70), ("value", 105, 210)])
def test_length_of_the_sequence_is_the_trained_one(steps, length, longer):
    model = small(steps=steps)
    assert {layer.base_size for layer in layers(model)} == {(length,)}
    assert {layer.rate(0, longer) for layer in layers(model)} == {0.5}  # of an image twice as high, or twice as wide
    x = images(10, 7)
    before = model(x)
    model.set_input_size((10, 7))
    assert {layer.base_size for layer in layers(model)} == {(longer,)}
    assert_close(model(x), before, 1e-10)


@pytest.mark.parametrize(("height", "width", "step", "row"), [(5, 14, (0, 2), (1, 0)), (10, 7, (0, 2), (2, 0))])
def test_at_another_size_a_row_keeps_its_distance_and_a_step_does_if_the_width_alone_changes(height, width, step, row):
    """Rows down and pixels right at which a trained lag of one step, or of a row, is found; dilated, so that it is found whole.

    Twice as wide, (0, 2) is one trained pixel, and (1, 0) a trained row. Twice as high, (0, 2) are two, and (2, 0) is a row.
    """
    layer = layers(small(resample="dilate"))[0]
    k, trained = (layer.kernel_lags(0, n)[0, 0] for n in (height * width, 35))
    for lag, (down, right) in {1: step, 7: row}.items():
        assert_close(k[:, 69 + down * width + right], trained[:, 34 + lag])


@pytest.mark.parametrize("disc", DISCRETIZATIONS)
def test_discretisation_reaches_every_layer(disc):
    model = small(disc=disc)
    assert [kernel.disc for layer in layers(model) for kernel in layer.kernels] == [disc, disc]


def test_async_is_zoh_at_the_trained_size_and_no_other_is():
    logits = {
        (disc, size): small(disc=disc)(images(*size)) for disc in DISCRETIZATIONS for size in (SIZE, (5, 14), (3, 7))
    }
    same = {
        size: [disc for disc in DISCRETIZATIONS if torch.equal(logits[disc, size], logits["zoh", size])]
        for _, size in logits
    }
    assert same == {SIZE: ["zoh", "async"], (5, 14): ["zoh"], (3, 7): ["zoh"]}


@pytest.mark.parametrize("name", ["s4nd_seq_tiny", "s4nd_seq_small"])
def test_registered_models_read_1024_pixels_or_3072_values(name):
    for steps, length in (("pixel", 1024), ("value", 3072)):
        model = timm.create_model(name, steps=steps, device="meta")
        assert {(layer.base_size, layer.bidirectional) for layer in layers(model)} == {((length,), (True,))}


def test_registered_models_are_listed():
    assert timm.list_models("s4nd_seq_*") == ["s4nd_seq_small", "s4nd_seq_tiny"]


@pytest.mark.parametrize(("name", "count"), [("s4nd_seq_tiny", 51_978), ("s4nd_seq_small", 997_130)])
def test_number_of_parameters_is_that_of_the_readme(name, count):
    assert sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) == count


def test_another_reading_is_refused():
    with pytest.raises(ValueError, match=r"steps must be one of \('pixel', 'value'\), got 'patch'"):
        small(steps="patch")


def test_features_of_values_are_those_of_forward_intermediates():
    x = images(*SIZE)
    features = small(steps="value", features_only=True, out_indices=(0, 1))
    expected = small(steps="value").forward_intermediates(x, intermediates_only=True)
    found = features(x)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    assert found[0].shape == (2, 8, 5, 21)
