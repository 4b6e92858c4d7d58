"""The isotropic networks against the paper's parameter counts and the reference's logits (tests/golden)."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import s4nd.models
from s4nd import S4ND
from s4nd.models.isotropic import Isotropic
from tests.reference import axis_parameters

F64 = torch.float64
GOLDEN = Path(__file__).parents[1] / "golden"
RENAMED = {
    "encoder.1.": "stem.",
    "decoder.0.output_transform.": "head.fc.",
    "model.norm.norm.": "norm.",
    "model.layers.": "blocks.",
    ".norm.norm.": ".norm.",
    ".layer.conv2d.": ".mixer.0.",
    ".layer.output_linear.0.": ".mixer.proj.",
    ".layer.": ".mixer.s4nd.",
    ".kernel.": ".kernels.",
}
POINTWISE = ("stem.weight", "proj.weight")  # linear layers over the last axis there, 1x1 convolutions here


def read(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        tensors = {k: torch.from_numpy(arrays[k]) for k in arrays.files if arrays[k].dtype.kind in "fi"}
    return {k: t.to(F64) if t.is_floating_point() else t for k, t in tensors.items()}


def state_of(arrays, *, rate=1.0):
    """The reference's state dict under our names; C is the one that the reference's kernels at `rate` amount to."""
    ours, axes = {}, {}
    for key, value in arrays.items():
        if not key.startswith("state/"):
            continue
        key = key.removeprefix("state/")
        for theirs, here in RENAMED.items():
            key = key.replace(theirs, here)
        if ".kernels." in key:
            axis, _, tensor = key.rpartition(".")
            axes.setdefault(axis, {})[tensor] = value
        elif "mixer.0.weight" in key:
            ours[key] = value.transpose(2, 3)  # the reference swaps height and width before its convolution
        else:
            ours[key] = value[..., None, None] if key.endswith(POINTWISE) else value
    for axis, tensors in axes.items():
        ours |= {f"{axis}.{name}": value for name, value in axis_parameters(tensors, rate=rate).items()}
    return ours


def channels_first(x):
    return x.permute(0, 3, 1, 2)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize(("name", "count"), [("s4nd_iso_base", 5_282_826), ("conv_iso_base", 2_158_602)])
def test_base_models_have_the_papers_number_of_parameters(name, count):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("variant", ["tiny", "small", "base"])
def test_twins_differ_in_the_mixer_only(variant):
    shapes = [
        {n: p.shape for n, p in timm.create_model(name, device="meta").named_parameters() if ".mixer." not in n}
        for name in (f"s4nd_iso_{variant}", f"conv_iso_{variant}")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("glu", [True, False])
def test_gated_alike_twins_differ_in_the_kernel_only(glu):
    def shapes(name, kernel):
        parameters = timm.create_model(name, glu=glu, device="meta").named_parameters()
        return {n: p.shape for n, p in parameters if f".{kernel}." not in n}

    assert shapes("s4nd_iso_tiny", "s4nd") == shapes("conv_iso_tiny", "conv")
    width = 128 if glu else 64
    assert shapes("s4nd_iso_tiny", "s4nd")["blocks.0.mixer.proj.weight"] == (width, 64, 1, 1)


@pytest.mark.parametrize("name", ["s4nd_iso_tiny", "conv_iso_tiny", "s4nd_seq_tiny"])
@pytest.mark.parametrize("glu", [True, False])
def test_mixers_are_convolution_activation_map_and_gate(name, glu):
    model = timm.create_model(name, img_size=6, embed_dim=8, act_layer="silu", glu=glu, dtype=F64).eval()
    mixer = model.blocks[0].mixer
    u = torch.randn(2, 8, 6, 6, dtype=F64)
    if name == "conv_iso_tiny":
        y = mixer.conv(u)
    else:
        y = mixer.s4nd(u) if name == "s4nd_iso_tiny" else mixer.s4nd(u.flatten(2)).unflatten(2, (6, 6))
    y = y * torch.sigmoid(y)
    y = torch.einsum("oh,bhij->boij", mixer.proj.weight[..., 0, 0], y) + mixer.proj.bias[:, None, None]
    if glu:
        y = y[:, :8] * torch.sigmoid(y[:, 8:])
    torch.testing.assert_close(mixer(u), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("act_layer", ["swiglu", "", 3])
@pytest.mark.parametrize("name", ["s4nd_iso_tiny", "conv_iso_tiny"])
def test_an_activation_that_timm_does_not_have_is_refused(name, act_layer):
    with pytest.raises(ValueError, match="act_layer must be timm's name"):
        timm.create_model(name, act_layer=act_layer)


def test_conv_network_gives_the_references_logits():
    arrays = read("iso2d_conv")

    def dense_conv(dim, base_size, drop, **dd):  # the reference file holds a dense convolution without the 1x1
        return nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, **dd), nn.GELU())

    model = Isotropic(dense_conv, img_size=8, embed_dim=16, depth=2, dtype=F64).eval()
    model.load_state_dict(state_of(arrays))
    assert_close(model(channels_first(arrays["input"])), arrays["logits"])


@pytest.mark.parametrize(("suffix", "rate"), [("", 1.0), ("_rate2", 2.0), ("_rate0.5", 0.5)])
def test_s4nd_network_gives_the_references_logits(suffix, rate):
    """At three resolutions of the input; the grid's own size sets the rate."""
    arrays = read("iso2d_s4nd")
    args = dict(img_size=8, embed_dim=16, depth=2, d_state=8, align="edge", resample="continuous", dtype=F64)
    model = timm.create_model("s4nd_iso_base", **args).eval()
    samplings = {name: value for name, value in model.state_dict().items() if name.endswith("_extra_state")}
    model.load_state_dict(state_of(arrays, rate=rate) | samplings)
    assert_close(model(channels_first(arrays[f"input{suffix}"])), arrays[f"logits{suffix}"])


def test_layer_options_reach_every_layer():
    options = dict(d_state=4, kernel="s4", init=["legs", "fout"], bandlimit=0.5, align="edge", rank=2, channels=2)
    model = timm.create_model("s4nd_iso_tiny", img_size=(8, 12), embed_dim=8, depth=2, **options)
    found = [m for m in model.modules() if isinstance(m, S4ND)]
    assert len(found) == 2
    for layer in found:
        assert layer.base_size == (8, 12)
        assert (layer.d_state, layer.bandlimit, layer.align, layer.rank, layer.channels) == (4, 0.5, "edge", 2, 2)
        assert [k.init for k in layer.kernels] == ["legs", "fout"]
    assert model(torch.randn(1, 3, 8, 12)).shape == (1, 10)


@pytest.mark.parametrize(
    "name", ["s4nd_iso_tiny", "s4nd_iso_small", "s4nd_iso_base", "s4nd_convnext_micro", "s4nd_convnext3d_micro"]
)
def test_first_layer_holds_and_the_others_dilate_unless_told_otherwise(name):
    def methods(**args):
        model = timm.create_model(name, img_size=32, device="meta", **args)
        return [{*m.resample} for m in model.modules() if isinstance(m, S4ND)]

    first, *others = methods()
    assert first == {"hold"} and all(method == {"dilate"} for method in others)
    assert all(method == {"continuous"} for method in methods(resample="continuous"))


def test_unknown_option_is_refused():
    with pytest.raises(TypeError, match="d_sate"):
        timm.create_model("s4nd_iso_tiny", d_sate=8)
    with pytest.raises(TypeError, match="bandlimit"):
        timm.create_model("conv_iso_tiny", bandlimit=0.5)


def test_registered_models_are_listed():
    sizes = ("base", "small", "tiny")
    assert timm.list_models("s4nd_iso_*") == [f"s4nd_iso_{s}" for s in sizes]
    assert timm.list_models("conv_iso_*") == [f"conv_iso_{s}" for s in sizes]
    assert s4nd.models.s4nd_iso.__name__ == "s4nd.models.s4nd_iso"


def small(**args):
    torch.manual_seed(0)
    return timm.create_model("s4nd_iso_tiny", **{"img_size": 8, "embed_dim": 8, "depth": 3, **args})


def test_drop_path_grows_linearly_to_the_last_block():
    blocks = small(drop_path_rate=0.4).blocks
    assert isinstance(blocks[0].drop_path, torch.nn.Identity)
    assert [round(b.drop_path.drop_prob, 6) for b in blocks[1:]] == [0.2, 0.4]


def test_dropout_falls_on_whole_channels():
    block = small(proj_drop_rate=0.5).train().blocks[0]
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    dropped = (block(x) == x).flatten(2)  # where the residual branch is zero
    assert 0 < dropped.all(-1).sum() < dropped[..., 0].numel()
    assert torch.equal(dropped.all(-1), dropped.any(-1))


def test_a_wrong_input_names_both_shapes():
    model = small(in_chans=1)
    with pytest.raises(ValueError, match=r"x must be \(B, 1, height, width\), got \(2, 3, 8, 8\)"):
        model(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"x must be \(B, 1, height, width\), got \(2, 1, 8\)"):
        model(torch.randn(2, 1, 8))
