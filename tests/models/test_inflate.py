"""Inflated video models against the reference's inflated weights, and against their image models on a clip of one image."""

import json

import numpy as np
import pytest
import timm
import torch
from timm.models import ConvNeXt
from torch import nn

import s4nd.models
from s4nd import S4ND
from s4nd.models import inflate
from s4nd.models.convnext3d import ConvNeXt3d, FactoredConv3d
from s4nd.models.reference_weights import convert_reference
from s4nd.models.s4nd_convnext import S4NDConvNeXt
from s4nd.models.s4nd_convnext3d import S4NDConvNeXt3d

F64 = torch.float64
SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5, ls_init_value=1.0)
GOLDEN = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=10)
CONVS = {"i3d": nn.Conv3d, "s3d": FactoredConv3d}
DRAWN = 8 * torch.finfo(torch.float32).eps  # eight layers whose initial operators are rounded to float32
# Over time, LegS with dt = 2 reads its first coordinate at once: k = 1, 0, 0, ..., so that nothing is left to decay.
INSTANT = dict(init=("legs", "fout", "fout"), align="edge")


def randomised(model):
    """Every parameter that would hide a path: norms, biases, layer scales."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".kernels." not in name and (p.ndim == 1 or name.endswith("weight")):
                p.copy_(torch.randn_like(p) / max(1, p[0].numel()) ** 0.5 + (0.5 if p.ndim == 1 else 0))
    return model.to(F64).eval()


def image_model(kind="conv", **args):
    torch.manual_seed(0)
    if kind == "conv":
        return randomised(ConvNeXt(**{**SMALL, **args}))
    more = dict(stem="s4nd", downsample="s4nd", stem_channels=4) if kind == "s4nd_stem" else {}
    return randomised(S4NDConvNeXt(**{"img_size": 64, "d_state": 4, "align": "edge", **SMALL, **more, **args}))


def video_model(kind="patch", **args):
    torch.manual_seed(2)
    more = dict(stem="s4nd", downsample="s4nd", stem_channels=4) if kind == "s4nd_stem" else {}
    own = {"img_size": 64, "num_frames": 0, "d_state": 4, **SMALL, **INSTANT, **more}
    return S4NDConvNeXt3d(**{**own, **args}).to(F64).eval()


def image(size=64):
    return torch.randn(1, 3, size, size, dtype=F64, generator=torch.Generator().manual_seed(3))


def constant_clip(x, frames):
    return x.unsqueeze(2).expand(-1, -1, frames, -1, -1)


def layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, S4ND)}


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def read(shared, name):
    with np.load(shared / "golden" / f"{name}.npz", allow_pickle=False) as arrays:
        return {k: torch.from_numpy(arrays[k]) for k in arrays.files if arrays[k].dtype.kind in "fi"} | {
            "config": json.loads(str(arrays["config"]))
        }


def golden(shared, inflated, flat):
    """The reference's image model's state dict, and that of its inflation."""
    arrays, state = read(shared, inflated), {}
    for key, value in read(shared, flat).items():
        if key.startswith("state/"):
            state[key.removeprefix("state/")] = value
    full = {key: state[key] for key in arrays["config"]["identical_to_2d"]}
    full |= {key.removeprefix("state3d/"): value for key, value in arrays.items() if key.startswith("state3d/")}
    return arrays, state, full


@pytest.mark.parametrize("kind", CONVS)
def test_inflated_convolutions_are_the_references(shared, kind):
    """The weights of I3D, and its logits on a clip of one image with the reference's new head; S3D computes the same."""
    arrays, state, full = golden(shared, "inflate_i3d_div_T", "convnext2d_conv")
    flat = ConvNeXt(**GOLDEN).to(F64)
    flat.load_state_dict(convert_reference(state, flat))
    whole, model = ConvNeXt3d(**GOLDEN).to(F64), ConvNeXt3d(CONVS[kind], **GOLDEN).to(F64).eval()
    report = inflate(flat, model)
    assert report.initial == report.unused == []
    expected = convert_reference(full, whole)
    if kind == "i3d":
        for name, value in model.state_dict().items():
            if not name.startswith("head."):
                assert_close(value, expected[name], torch.finfo(torch.float32).eps)
    head = {name: value for name, value in expected.items() if name.startswith("head.")}
    model.load_state_dict({**model.state_dict(), **head})
    clip = constant_clip(arrays["image"].to(F64), int(arrays["frames"]))
    assert_close(model(clip), arrays["logits3d_constant_video"], 1e-6)


def test_inflated_s4nd_weights_are_the_references_but_for_its_missing_division(shared):
    _, state, full = golden(shared, "inflate_s4nd_patch", "convnext2d_s4nd_patch")
    options = dict(d_state=8, init="fout", n_ssm=1, align="edge", img_size=64, **GOLDEN)
    flat = S4NDConvNeXt(**options).to(F64)
    flat.load_state_dict(convert_reference(state, flat))
    model = S4NDConvNeXt3d(**options, num_frames=4).to(F64)
    before, expected = copied(model), convert_reference(full, model)
    report = inflate(flat, model, unit_gain=False)
    assert all(".kernels.0." in name for name in report.initial) and report.scaled == report.unused == []
    for name, value in model.state_dict().items():
        if name in report.initial:
            assert torch.equal(value, before[name])
        elif name in report.inflated:
            assert torch.equal(value * value.shape[2], expected[name])  # T is 1 or 2
        elif not name.startswith("head."):
            assert_close(value, expected[name], 1e-9)


@pytest.mark.parametrize("kind", CONVS)
def test_convolutions_give_the_images_features_away_from_the_ends_of_a_clip_of_one_image(kind):
    flat, model = image_model(), ConvNeXt3d(CONVS[kind], **SMALL).to(F64).eval()
    inflate(flat, model)
    expected = flat.forward_features(image())
    features = model.forward_features(constant_clip(image(), 24)).unbind(2)
    for t, frame in enumerate(features):  # four blocks, each of which sees one patch to either side
        error = (frame - expected).abs().max() / expected.abs().max()
        assert (error < 1e-12) if 4 <= t < 8 else (error > 1e-6) if t in (0, 11) else True


@pytest.mark.parametrize("kind", ["patch", "s4nd_stem"])
@pytest.mark.parametrize("causal", [False, True])
def test_s4nd_gives_the_images_features_where_its_kernels_over_time_have_decayed(kind, causal):
    """With `INSTANT` kernels a layer sees, of time, this instant and (two-sided, align="edge") the next one."""
    flat, model = image_model("s4nd" if kind == "patch" else kind), video_model(kind, causal=causal)
    report = inflate(flat, model)
    assert report.unused == [] and set(report.scaled) == {f"{name}.kernels.0.C" for name in layers(model)}
    expected = flat.forward_features(image())
    features = model.forward_features(constant_clip(image(), 24))
    inside = features[:, :, 2:] if causal else features[:, :, 2:3]  # the stem's kernels reach 4 frames
    assert_close(inside, expected.unsqueeze(2).expand_as(inside), DRAWN)
    if not causal:
        assert (features[:, :, -1] - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize("unit_gain", [False, True])
def test_a_layer_gives_the_images_output_times_the_sum_of_the_taps_in_reach(align, unit_gain):
    """y = T (S u) + D u for the paper's initialisation too; all taps sum to 1, or to 1 per direction without unit_gain."""
    flat, model = image_model("s4nd", align=align), video_model(init=("hippo", "fout", "fout"), align=align)
    inflate(flat, model, unit_gain=unit_gain)
    for name, layer in layers(model).items():
        theirs, n = flat.get_submodule(name), 9
        u = torch.randn(1, layer.d_model, 8, 6, dtype=F64)
        skip = theirs.D[0, :, None, None] * u
        taps = layer.kernel_lags(0, n)[0, 0]  # (H, 2n - 1)
        for t, y in enumerate(layer(constant_clip(u, n)).unbind(2)):
            reach = taps[:, t : t + n].sum(-1)[:, None, None]  # lags t - (n - 1) to t
            assert_close(y, reach * (theirs(u) - skip) + skip, 1e-10)
        both = torch.stack([k.sum(-1) for k in layer.kernels[0](4000, align=align)]).sum(0)
        # What is left after 4,000 samples: FouT's zero mode is damped by 1e-4 per unit of time, a step is 2 units.
        assert_close(both, torch.full_like(both, 1.0 if unit_gain else 2.0), 1e-3)


@pytest.mark.parametrize("kernel", ["s4", "s4d", "dss"])
def test_unit_gain_holds_for_every_kernel_and_every_term_of_the_sum(kernel):
    other = dict(kernel=kernel, init="legs", dt_min=0.2)
    model = video_model(rank=2, num_frames=32 if kernel == "dss" else 0, **({} if kernel == "s4" else other))
    for layer in layers(model).values():
        if kernel != "s4":  # a drawn read-out may sum to nearly nothing, this one does not
            layer.kernels[0].C.data.copy_(torch.tensor([1.0, 0.1], dtype=F64))
    inflate(image_model("s4nd", rank=2, kernel=kernel, **({} if kernel == "s4" else dict(init="legs"))), model)
    for layer in layers(model).values():
        taps = layer.kernels[0](layer.base_size[0] or 2000, align="edge").unflatten(0, (2, 2, -1))
        gain = taps.sum((0, -1))
        assert_close(gain, torch.ones_like(gain), 1e-9)


def test_state_dict_gives_what_its_model_does():
    flat, (a, b) = image_model("s4nd"), (video_model(), video_model())
    assert inflate(flat, a) == inflate(flat.state_dict(), b)
    assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    assert str(inflate(flat, a)).startswith("96 copied: stem.0.bias, stem.1.weight")


@pytest.mark.parametrize("kind", ["patch", "s4nd_stem"])
def test_kernels_of_another_size_are_re_sampled(kind):
    """Images were trained at 64 pixels, frames count as trained at 32 x 96: the functions stay those of 64."""
    flat = image_model("s4nd" if kind == "patch" else kind)
    model = video_model(kind, causal=True, img_size=(32, 96))
    inflate(flat, model)
    assert model.stages[0].blocks[0].conv_dw.base_size == (None, 8, 24)
    expected = flat.forward_features(image())
    assert_close(model.forward_features(constant_clip(image(), 8))[:, :, -1], expected, DRAWN)


@pytest.mark.parametrize("kind", ["patch", "s4nd_stem"])
@pytest.mark.parametrize("method", ["hold", "continuous"])
def test_method_over_space_is_the_images(kind, method):
    """Held kernels stay those of the images' grid, in videos of another size too."""
    source = image_model("s4nd_stem" if kind == "s4nd_stem" else "s4nd", img_size=64, resample=method)
    model = video_model(kind, img_size=96, resample="hold" if method == "continuous" else "continuous")
    inflate(source, model)
    flat = {name: layer for name, layer in source.named_modules() if isinstance(layer, S4ND)}
    for name, layer in model.named_modules():
        if isinstance(layer, S4ND) and name in flat:
            assert layer.resample[1:] == (method, method)
            assert layer.base_size[1:] == flat[name].base_size if method == "hold" else layer.base_size[1] is not None
            n = 3 * flat[name].base_size[0] // 2  # its grid at 96 pixels
            assert_close(layer.kernel_lags(1, n), flat[name].kernel_lags(0, n))


def test_timms_convnext_gives_all_to_convolutions_and_all_but_its_convolutions_to_s4nd():
    names = dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5)
    flat = timm.create_model("convnext_tiny", **names)
    for name in ("convnext_i3d_tiny", "convnext_s3d_tiny"):
        report = inflate(flat, timm.create_model(name, **names))
        assert report.initial == report.scaled == report.unused == []
    model = timm.create_model("s4nd_convnext3d_tiny", d_state=4, **names)
    before = copied(model)
    report = inflate(flat, model)
    mixers = [f"stages.{i}.blocks.0.conv_dw" for i in range(4)]
    assert report.unused == [f"{mixer}.{name}" for mixer in mixers for name in ("weight", "bias")]
    before = {name: value for name, value in before.items() if not name.endswith("_extra_state")}
    assert report.initial == [name for name in before if "conv_dw" in name] and report.scaled == []
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.initial)
    assert torch.equal(model.stages[1].blocks[0].mlp.fc1.weight, flat.stages[1].blocks[0].mlp.fc1.weight)
    assert set(report.copied + report.inflated + report.initial) == before.keys()


def test_classifier_of_other_classes_stays_as_it_was():
    model = ConvNeXt3d(**{**SMALL, "num_classes": 4}).to(F64)
    before = copied(model)
    report = inflate(image_model(), model)
    assert report.initial == report.unused == ["head.fc.weight", "head.fc.bias"]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.initial)
    assert inflate(image_model(), ConvNeXt3d(**{**SMALL, "num_classes": 0})).unused == report.unused


WIDE = {**SMALL, "dims": (8, 8, 16, 24)}


@pytest.mark.parametrize(
    ("source", "model", "message"),
    [
        (
            lambda: image_model(dims=WIDE["dims"]),
            lambda: ConvNeXt3d(**SMALL),
            r"14 of another shape: stages\.3\.downsample\.1\.",
        ),
        (
            lambda: image_model(depths=(1, 1, 2, 1)),
            lambda: ConvNeXt3d(**SMALL),
            r"9 unknown: stages\.2\.blocks\.1\.gamma",
        ),
        (
            lambda: image_model(),
            lambda: ConvNeXt3d(**{**SMALL, "depths": (2, 1, 1, 1)}),
            r"9 missing: stages\.0\.blocks\.1",
        ),
        (lambda: image_model("s4nd"), lambda: video_model("s4nd_stem"), r"missing: .*stem\.0\.kernels\.0\.C"),
        (lambda: image_model("s4nd", align="centre"), video_model, "of one alignment and one more axis, .*'centre'"),
        (
            lambda: image_model("s4nd", img_size=32, kernel="s4d", disc="async"),
            lambda: S4NDConvNeXt3d(64, 0, d_state=4, align="edge", kernel="s4d", disc="async", **SMALL).to(F64),
            "disc='async' keeps its gain at the trained step: it cannot be rescaled",
        ),
        (
            lambda: image_model("s4nd"),
            lambda: video_model(deterministic=False),
            r"unit_gain needs .* less in \d layers: stages",
        ),
        (lambda: image_model(), image_model, r"fills a ConvNeXt over \(time, height, width\), got ConvNeXt$"),
        (lambda: {"stem.0.weight": [1.0]}, lambda: ConvNeXt3d(**SMALL), "tensors, got stem.0.weight of type list"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_it_and_leaves_the_model_alone(source, model, message):
    model = model()
    before = copied(model)
    with pytest.raises(ValueError, match=message):
        inflate(source(), model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_s4nd_images_leave_convolutions_over_time_as_they_were():
    model = ConvNeXt3d(**SMALL).to(F64)
    report = inflate(image_model("s4nd"), model)
    assert report.initial == [name for name in model.state_dict() if "conv_dw" in name]
    assert all("conv_dw" in name for name in report.unused) and len(report.unused) == 4 * 13


def test_the_function_is_what_the_package_exports():
    assert callable(s4nd.models.inflate) and s4nd.models.inflate is inflate
