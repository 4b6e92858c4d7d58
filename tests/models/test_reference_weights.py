"""Converted weights of the reference implementation against its logits and features, and what is refused."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.layers import LayerNorm
from timm.models import ConvNeXt
from torch import nn

from s4nd.models.isotropic import Isotropic
from s4nd.models.reference_weights import convert_reference, true_readout, unused_keys
from s4nd.models.s4nd_convnext import S4NDConvNeXt
from s4nd.models.s4nd_iso import S4NDMixer
from s4nd.models.s4nd_vit import S4NDViT
from s4nd.ssm import dplr_init
from s4nd.ssm.recurrence import dense_ssm, discretize_dense
from tests.reference import conditioning
from tests.reference import true_readout as dense_true_readout

F64 = torch.float64
GOLDEN = Path(__file__).parents[1] / "golden"
EPS = torch.finfo(torch.float32).eps
PREFIX = "model.layers.0.layer."


class DenseConvMixer(nn.Module):
    """The mixer of iso2d_conv: a dense convolution without the 1x1 after it."""

    def __init__(self, dim, base_size, drop, device=None, dtype=None):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x):
        return nn.functional.gelu(self.conv(x))


KERNELS = dict(kernel="s4", d_state=8, align="edge")
CONVNEXT = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=10)
ISO = dict(img_size=8, embed_dim=16, depth=2)
S4ND_STEM = dict(stem="s4nd", downsample="s4nd", stem_channels=8)
VIT = dict(
    img_size=32,
    patch_size=8,
    embed_dim=16,
    depth=2,
    num_heads=4,
    num_classes=10,
    norm_layer=partial(LayerNorm, eps=1e-5),
)
BUILD = {
    "convnext2d_s4nd_full": lambda **args: S4NDConvNeXt(**{**CONVNEXT, **KERNELS, **S4ND_STEM, "img_size": 64, **args}),
    "convnext2d_s4nd_patch": lambda **args: S4NDConvNeXt(**{**CONVNEXT, **KERNELS, "img_size": 64, **args}),
    "convnext2d_conv": lambda **args: ConvNeXt(**{**CONVNEXT, **args}),
    "iso2d_s4nd": lambda **args: Isotropic(S4NDMixer, **{**ISO, **KERNELS, **args}),
    "iso2d_conv": lambda **args: Isotropic(DenseConvMixer, **{**ISO, **args}),
    "vit_s4nd": lambda **args: S4NDViT(**{**VIT, **KERNELS, **args}),
}
S4ND_MODELS = [name for name in BUILD if "s4nd" in name]


def read(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return {k: torch.from_numpy(arrays[k]) for k in arrays.files if arrays[k].dtype.kind in "fi"}


def state_of(name):
    return {k.removeprefix("state/"): v for k, v in read(name).items() if k.startswith("state/")}


def image(x):
    """Channels first, as the isotropic files' inputs are not."""
    return (x if x.shape[1] == 3 else x.permute(0, 3, 1, 2)).to(F64)


def build(name, state=None, **args):
    """The model in float64, with the reference's weights."""
    model = BUILD[name](**args).to(F64).eval()
    model.load_state_dict(convert_reference(state_of(name) if state is None else state, model), strict=True)
    return model


def assert_close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected.to(F64), rtol=0, atol=tolerance * expected.abs().max().item())


def kernels_of(state):
    """{prefix of a kernel: its tensors}, in float64."""
    prefixes = [key.removesuffix("C") for key in state if key.endswith(".C")]
    tensors = {k: v.to(F64) if v.is_floating_point() else v for k, v in state.items()}
    return {p: {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in prefixes}


def state_with_layer(case, **args):
    """An isotropic network of one S4ND layer, and the reference's state dict with a golden layer's parameters in it."""
    model = Isotropic(S4NDMixer, **{"img_size": 8, "embed_dim": 3, "depth": 1, **KERNELS, **args}).to(F64).eval()
    shapes = {
        "encoder.1.": (3, 3),
        f"{PREFIX}output_linear.0.": (6, 3),
        "model.layers.0.norm.norm.": (3,),
        "model.norm.norm.": (3,),
        "decoder.0.output_transform.": (10, 3),
    }
    state = {f"{key}weight": torch.randn(shape) for key, shape in shapes.items()}
    state |= {f"{key}bias": torch.randn(shape[0]) for key, shape in shapes.items()}
    return model, state | {PREFIX + k[6:]: torch.from_numpy(v) for k, v in case.items() if k.startswith("param/")}


@pytest.mark.parametrize("name", BUILD)
def test_converted_model_gives_the_references_logits(name):
    arrays = read(name)
    assert_close(build(name)(image(arrays["input"])), arrays["logits"])


# Module of the reference -> ours.
FEATURES = {
    "convnext": {"stem": "stem"} | {f"stages.{i}": f"stages.{i}" for i in range(4)},
    "iso2d": {"encoder": "stem", "model.norm": "norm"} | {f"model.layers.{i}": f"blocks.{i}" for i in range(2)},
    "vit": {"patch_embed": "patch_embed", "blocks.1": "blocks.0", "blocks.3": "blocks.1", "norm": "norm"},
}


@pytest.mark.parametrize("name", BUILD)
def test_converted_model_gives_the_references_features(name):
    arrays, model, seen = read(name), build(name), {}
    pairs = next(pairs for family, pairs in FEATURES.items() if name.startswith(family))
    pairs = {theirs: ours for theirs, ours in pairs.items() if f"feat/{theirs}" in arrays}
    for theirs, ours in pairs.items():
        keep = lambda module, args, output, theirs=theirs: seen.update({theirs: output})  # noqa: E731
        model.get_submodule(ours).register_forward_hook(keep)
    model(image(arrays["input"]))
    assert len(seen) >= 2
    for theirs, feature in seen.items():
        expected = arrays[f"feat/{theirs}"]
        if name.startswith("iso2d"):
            feature = feature.permute(0, 2, 3, 1)
        assert_close(feature.reshape(expected.shape), expected, 2 * EPS)  # the files hold float32 there


@pytest.mark.parametrize(
    ("name", "suffix", "rate"),
    [
        ("convnext2d_s4nd_full", "half", 2.0),
        ("convnext2d_s4nd_patch", "half", 2.0),
        ("iso2d_s4nd", "rate2", 2.0),
        ("iso2d_s4nd", "rate0.5", 0.5),
    ],
)
def test_at_another_rate_only_the_references_use_of_its_readout_differs(name, suffix, rate):
    """It reads its C~ of rate 1 at every rate. With the C that this amounts to (and l_kernel 0: no C~) the models agree."""
    arrays, state = read(name), state_of(name)
    x = image(arrays[f"input_{suffix}"])
    logits = arrays["logits_half_resolution2" if suffix == "half" else f"logits_{suffix}"]
    as_evaluated = dict(state)
    for prefix, axis in kernels_of(state).items():
        as_evaluated |= {f"{prefix}C": dense_true_readout(axis, rate, None), f"{prefix}l_kernel": torch.tensor(0)}
    assert_close(build(name, as_evaluated)(x), logits)
    assert (build(name, state)(x) - logits).abs().max() > 1e-2 * logits.abs().max()


def complex_axis(case):
    """dt, Lambda and P of every head of a golden kernel."""
    copies = len(case["inv_dt"]) // len(case["A_real"])
    A = torch.complex(-case["A_real"].exp(), -case["A_imag"]).repeat(copies, 1)
    return case["inv_dt"][:, 0].exp(), A, torch.view_as_complex(case["P"]).repeat(1, copies, 1)


def assert_equal_but_for_rounding(C, expected, kappa, L):
    """Ab^L is a product of L factors of N terms each; the condition number of I - Ab^L multiplies their rounding."""
    tolerance = L * 2 * C.shape[-1] * kappa * torch.finfo(F64).eps
    torch.testing.assert_close(C, expected, rtol=0, atol=tolerance * expected.abs().max().item())


KERNEL_CASES = "fourier_r1_S4_L32 fourier_r1_S4_L33 hippo_r1_S4_L32 legs_r1_S1_L32 legs_r1_S2_L32 legs_r1_S4_L33 "
KERNEL_CASES += "legs_r3_S1_L32 legt_r2_S4_L32 legt_r2_S4_L33"


@pytest.mark.parametrize("name", KERNEL_CASES.split())
def test_readout_equals_the_references_before_its_first_forward(golden, name):
    case = {k: torch.from_numpy(v) for k, v in golden("kernel_dplr", f"dplr_{name}").items()}
    L = int(name.rpartition("_L")[2])
    kappa = conditioning(case | {"l_kernel": torch.tensor(L)}, 1.0)
    C = true_readout(*complex_axis(case), torch.view_as_complex(case["C_tilde"]), L)
    assert_equal_but_for_rounding(C, torch.view_as_complex(case["C"]), kappa, L)


def test_readout_of_64_states_equals_the_dense_complex_one():
    torch.manual_seed(0)
    A, P, B, _ = dplr_init("legs", 64)
    C = torch.randn(2, 3, 32, dtype=torch.complex128)
    dt = torch.tensor([0.01, 0.1, 1.0], dtype=F64)
    dense, _, both = dense_ssm(A.expand(3, -1), B.expand(3, -1), C, P[:, None].expand(-1, 3, -1))
    Ab, _ = discretize_dense(dt, dense, B.new_zeros(3, 64), "bilinear")
    kept = torch.eye(64) - torch.linalg.matrix_power(Ab, 14)
    C_tilde = torch.einsum("chn,hnm->chm", both, kept)[..., :32]
    found = true_readout(dt, A.expand(3, -1), P[:, None].expand(-1, 3, -1), C_tilde, 14)
    assert_equal_but_for_rounding(found, C, torch.linalg.cond(kept).max().item(), 14)


def test_without_a_low_rank_part_the_readout_is_divided_mode_by_mode():
    """The reference's diag-* initialisations in its default mode."""
    torch.manual_seed(0)
    dt, C = torch.rand(3, dtype=F64) + 0.1, torch.randn(2, 3, 4, dtype=torch.complex128)
    A = torch.complex(-torch.rand(3, 4, dtype=F64) - 0.1, torch.randn(3, 4, dtype=F64))
    a = (1 + dt[:, None] / 2 * A) / (1 - dt[:, None] / 2 * A)
    torch.testing.assert_close(true_readout(dt, A, torch.zeros(1, 3, 4) + 0j, C, 6), C / (1 - a**6), rtol=0, atol=1e-12)


def test_rank_is_the_references_mean(golden):
    case = golden("s4nd_2d_a", "trank2_ch2")
    args = dict(channels=2, rank=2, img_size=(7, 8))
    model, state = state_with_layer(case, **args)
    state[f"{PREFIX}output_linear.0.weight"] = torch.randn(6, 6)
    model.load_state_dict(convert_reference(state, model))
    y = model.blocks[0].mixer.s4nd(torch.from_numpy(case["u"]))
    assert_close(y, torch.from_numpy(case["y_ref"]))


def test_diagonal_kernel_is_taken_as_it_is(golden):
    case = golden("s4nd_1d", "kernel_diag_zoh")
    model, state = state_with_layer(case, kernel="s4d", n_ssm=None)
    state |= {key.replace("kernel.0.", "kernel.1."): value for key, value in state.items()}
    model.load_state_dict(convert_reference(state, model))
    for kernel in model.blocks[0].mixer.s4nd.kernels:
        assert_close(kernel(16), torch.from_numpy(case["k0"]))


EARLIER = {"inv_dt": "log_dt", "A_real": "inv_w_real", "A_imag": "w_imag", "l_kernel": "L"}


@pytest.mark.parametrize("real", ["inv_w_real", "log_w_real"])
def test_earlier_names_give_the_same_weights(real):
    state, earlier = state_of("iso2d_s4nd"), {}
    for key, value in state.items():
        head, _, name = key.rpartition(".")
        name = EARLIER.get(name, name)
        # w = -exp(w_real) + i w_imag there
        earlier[f"{head}.{real if name == 'inv_w_real' else name}"] = -value if name == "w_imag" else value
    assert earlier.keys() != state.keys()
    model = BUILD["iso2d_s4nd"]()
    ours = convert_reference(state, model)
    assert all(torch.equal(value, ours[key]) for key, value in convert_reference(earlier, model).items())


def test_prefix_of_lightning_is_taken_off():
    model, state = BUILD["convnext2d_s4nd_full"](), state_of("convnext2d_s4nd_full")
    ours = convert_reference(state, model)
    prefixed = convert_reference({f"model.{key}": value for key, value in state.items()}, model)
    assert all(torch.equal(value, ours[key]) for key, value in prefixed.items())


def test_depthwise_twin_takes_its_convolutions_transposed():
    """The reference's depthwise layer does not run, so that it has no logits: its parameters are conv2d and linear."""
    torch.manual_seed(0)
    state = {key: value for key, value in state_of("iso2d_conv").items() if ".layer." not in key}
    for i in range(2):
        shapes = {"conv2d": (16, 1, 3, 3), "linear": (16, 16, 1, 1)}
        for name, shape in shapes.items():
            head = f"model.layers.{i}.layer.{name}"
            state |= {f"{head}.weight": torch.randn(shape), f"{head}.bias": torch.randn(16)}
    ours = convert_reference(state, timm.create_model("conv_iso_tiny", embed_dim=16, depth=2))
    theirs = state["model.layers.1.layer.conv2d.weight"]
    assert torch.equal(ours["blocks.1.mixer.conv.weight"], theirs.transpose(2, 3))
    assert torch.equal(ours["blocks.1.mixer.proj.weight"], state["model.layers.1.layer.linear.weight"])


def test_result_has_the_models_dtype_and_shares_no_memory_with_its_source():
    model, state = BUILD["vit_s4nd"](device="meta"), state_of("vit_s4nd")
    ours = convert_reference(state, model)
    assert {value.dtype for key, value in ours.items() if not key.endswith("_extra_state")} == {torch.float32}
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert ours["head.weight"].data_ptr() != state["head.weight"].data_ptr()


def test_what_the_reference_does_not_use_is_left_out_and_said():
    """The D of its dense stem, and the second kernel that its ViT has as shipped."""
    full, vit = state_of("convnext2d_s4nd_full"), state_of("vit_s4nd")
    assert unused_keys(full, BUILD["convnext2d_s4nd_full"]()) == ["stem.stem.D"]
    second = {k.replace("kernel.0", "kernel.1"): v for k, v in vit.items() if "kernel.0" in k}
    model = BUILD["vit_s4nd"]()
    assert unused_keys(vit | second, model) == list(second)
    assert convert_reference(vit | second, model).keys() == model.state_dict().keys()
    for name in set(BUILD) - {"convnext2d_s4nd_full"}:
        assert unused_keys(state_of(name), BUILD[name]()) == []


def test_third_axis_is_not_left_out():
    state = state_of("iso2d_s4nd")
    state |= {k.replace("kernel.0", "kernel.2"): v for k, v in state.items() if "kernel.0" in k}
    with pytest.raises(ValueError, match=r"14 unknown: model\.layers\.0\.layer\.kernel\.2\.inv_dt, .*, and 6 more"):
        convert_reference(state, BUILD["iso2d_s4nd"]())


def test_centred_model_is_refused():
    with pytest.raises(ValueError, match="build the model with align='edge', got align='centre' in "):
        convert_reference({}, BUILD["iso2d_s4nd"](align="centre"))


def test_other_network_is_refused():
    with pytest.raises(ValueError, match="need a ConvNeXt, an S4ND-ViT or an isotropic network, got Linear"):
        convert_reference({}, nn.Linear(1, 1))


def change(key, value=None):
    """A function that takes a state dict's `key` out, or changes it."""

    def changed(state):
        state = dict(state, more=torch.zeros(1)) if key is None else dict(state)
        if key is not None:
            old = state.pop(key)
            state |= {} if value is None else {key: value(old)}
        return state

    return changed


C = "model.layers.1.layer.kernel.0.C"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change(None), "1 unknown: more"),
        (change("encoder.1.bias"), "1 missing: stem.bias"),
        (change(C), r"1 missing: blocks\.1\.mixer\.s4nd\.kernels\.0\.C"),
        (change(C.replace("C", "P")), r"1 missing: blocks\.1\.mixer\.s4nd\.kernels\.0\.P"),
        (change(C.replace("C", "l_kernel")), r"1 missing: blocks\.1\.mixer\.s4nd\.kernels\.0\.l_kernel"),
        (change(C, lambda t: t[:1]), r"1 of another shape: blocks\.1\.\S+\.C \(1, 16, 4, 2\) for \(2, 16, 4, 2\)"),
        (change(C, lambda t: t * torch.inf), r"kernels\.0: C is not finite"),
        (change(C.replace("C", "l_kernel"), lambda t: -t), "need l_kernel >= 0 .* got l_kernel=-8"),
        (change(C.replace("C", "l_kernel"), lambda t: t.expand(2)), r"of another shape: \S+l_kernel \(2,\) for \(\)"),
        (change("encoder.1.bias", lambda t: t.tolist()), "holds tensors, got encoder.1.bias of type list"),
    ],
)
def test_state_that_does_not_fit_is_an_error_that_names_the_key(changed, message):
    with pytest.raises(ValueError, match=message):
        convert_reference(changed(state_of("iso2d_s4nd")), BUILD["iso2d_s4nd"]())


def test_two_tensors_for_one_parameter_are_refused():
    state = state_of("iso2d_s4nd")
    state["model.layers.0.layer.kernel.0.log_dt"] = state["model.layers.0.layer.kernel.0.inv_dt"]
    with pytest.raises(ValueError, match=r"1 unknown: model\.layers\.0\.layer\.kernel\.0\.log_dt"):
        convert_reference(state, BUILD["iso2d_s4nd"]())


def test_weights_of_this_library_are_not_converted_again():
    model = BUILD["convnext2d_s4nd_patch"]()
    with pytest.raises(ValueError, match=r"unknown: stages\.0\.blocks\.0\.conv_dw\._extra_state, "):
        convert_reference(model.state_dict(), model)


@pytest.mark.parametrize(("log_dt", "message"), [(-2000.0, r"I - Ab\^8 is singular"), (-200.0, "C is not finite")])
def test_kernel_that_does_not_decay_is_refused(log_dt, message):
    state = state_of("iso2d_s4nd")
    key = "model.layers.0.layer.kernel.1.inv_dt"
    with pytest.raises(ValueError, match=rf"blocks\.0\.mixer\.s4nd\.kernels\.1: {message}"):
        convert_reference(state | {key: torch.full_like(state[key], log_dt)}, BUILD["iso2d_s4nd"]())
