"""replace on small models of timm's families: the model's shapes and fusing against the original, its errors by their text."""

import copy
import functools

import pytest
import timm
import torch
from timm.layers import Conv2dSame, MixedConv2d
from timm.models.byobnet import MobileOneBlock as ByobMobileOneBlock
from timm.models.convmixer import ConvMixer
from timm.models.fastvit import MobileOneBlock, ReparamLargeKernelConv, RepConditionalPosEnc
from timm.models.metaformer import Attention as MetaFormerAttention
from timm.models.metaformer import LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.models.repghost import RepGhostNet
from timm.utils import reparameterize_model
from torch import nn

import s4nd
from s4nd import S4ND
from s4nd.models import replace
from s4nd.models.replace import AttentionMixer
from s4nd.models.replaceable import ATTENTION, timm_classes
from s4nd.nn import KERNELS

OPTIONS = dict(d_state=4, kernel="s4d")
STAGES = dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64))

CAFORMER = dict(
    token_mixers=[SepConv, SepConv, MetaFormerAttention, MetaFormerAttention],
    norm_layers=[LayerNorm2dNoBias, LayerNorm2dNoBias, LayerNormNoBias, LayerNormNoBias],
)
GHOST = [[[3, 8, 16, 0, 1]], [[3, 24, 24, 0, 2]], [[5, 36, 40, 0.25, 2]]]  # kernel, middle, out, squeeze, stride
create = functools.partial(functools.partial, timm.create_model, num_classes=5)
ViT = functools.partial(
    create, img_size=(32, 48), patch_size=8, embed_dim=24, depth=2, num_heads=2, dynamic_img_size=True
)
fastvit = dict(layers=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64))

# model, number of layers that are replaced
DEPTHWISE = {
    "convnext": (create("convnext_atto", **STAGES), 4),
    "convnextv2": (create("convnextv2_atto", **STAGES), 4),
    "mobilenetv4": (create("mobilenetv4_conv_small_035"), 15),
    "efficientnet_same_padding": (create("test_efficientnet", pad_type="same"), 2),
    "convmixer": (functools.partial(ConvMixer, dim=8, depth=2, patch_size=4, num_classes=5), 2),
    "convformer": (functools.partial(MetaFormer, token_mixers=SepConv, num_classes=5, **STAGES), 4),
    "repvit": (create("repvit_m0_9", embed_dim=(8, 16, 24, 32), depth=(1, 1, 1, 1)), 10),
    "fastvit": (create("fastvit_t8", **fastvit), 13),
    "fastvit_with_position_encoding": (create("fastvit_sa12", **fastvit), 13),
    "repghostnet": (functools.partial(RepGhostNet, GHOST, num_classes=5), 10),
    "inception_next": (create("inception_next_atto", **STAGES), 12),
}
ATTENTIVE = {
    "deit": (create("deit_tiny_distilled_patch16_224", img_size=64, depth=2, dynamic_img_size=True), 2),
    "vit_registers": (ViT("vit_tiny_patch16_224", reg_tokens=2), 2),
    "vit_differential": (ViT("vit_tiny_patch16_224", attn_layer="diff"), 2),
    "eva": (ViT("eva02_tiny_patch14_224"), 2),
    "rope": (ViT("vit_small_patch16_rope_224"), 2),
    "beit": (create("beit_base_patch16_224", img_size=(32, 48), patch_size=8, embed_dim=24, depth=2, num_heads=2), 2),
    "relpos": (create("vit_relpos_small_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=2), 2),
    "cait": (create("cait_xxs24_224", img_size=32, embed_dim=24, depth=2, num_heads=2), 2),
    "caformer": (functools.partial(MetaFormer, **CAFORMER, num_classes=5, **STAGES), 2),
    "fastvit": (create("fastvit_sa12", **fastvit), 1),
}
FIXED_SIZE = {"beit", "relpos", "cait"}  # the original models refuse another size
SIZE = {"deit": (64, 64), "relpos": (32, 32), "cait": (32, 32), "vit_registers": (32, 48), "beit": (32, 48)}
SIZE |= {"vit_differential": (32, 48), "eva": (32, 48), "rope": (32, 48)}
CASES = [("depthwise", name) for name in DEPTHWISE] + [("attention", name) for name in ATTENTIVE]
every_case = pytest.mark.parametrize(("target", "name"), CASES, ids=["-".join(case) for case in CASES])


def original(target, name, seed=0):
    torch.manual_seed(seed)
    return (DEPTHWISE if target == "depthwise" else ATTENTIVE)[name][0]()


def replaced(target, name, seed=0, **options):
    return replace(original(target, name, seed), target, img_size=SIZE.get(name, (64, 96)), **{**OPTIONS, **options})


def images(name, batch=2, scale=1.0):
    size = [round(n * scale) for n in SIZE.get(name, (64, 96))]
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def layers(model):
    return [m for m in model.modules() if isinstance(m, S4ND)]


def has_target(target, model):
    if target == "attention":
        return any(isinstance(m, timm_classes(ATTENTION)) for m in model.modules())
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    return any(m.groups == m.in_channels > 1 for m in convs)


def assert_close(actual, expected, scale):
    torch.testing.assert_close(actual, expected, rtol=0, atol=scale * expected.abs().max().item())


@every_case
def test_replaced_model_keeps_shapes_at_every_size_that_the_original_takes(target, name):
    before, count = original(target, name).eval(), (DEPTHWISE if target == "depthwise" else ATTENTIVE)[name][1]
    model = replaced(target, name).eval()
    assert has_target(target, before)
    assert not has_target(target, model)
    assert len(layers(model)) == count
    sizes = [images(name).shape[2:]]
    if name not in FIXED_SIZE:
        sizes += (
            [(81, 115), (64, 64)] if target == "depthwise" or name in ("caformer", "fastvit") else [(96, 64), (32, 64)]
        )
    with torch.no_grad():
        for size in sizes:
            x = torch.randn(2, 3, *size)
            features, expected = model.forward_features(x), before.forward_features(x)
            assert features.shape == expected.shape
            assert features.isfinite().all()
            assert model(x).shape == before(x).shape


@every_case
def test_base_size_is_the_grid_at_the_trained_size(target, name):
    model, seen = replaced(target, name).eval(), {}
    for layer in layers(model):
        layer.register_forward_hook(lambda layer, args, y: seen.update({layer: tuple(args[0].shape[2:])}))
    model(images(name))
    assert {layer: layer.base_size for layer in layers(model)} == seen


@every_case
def test_a_training_step_reaches_every_new_parameter(target, name):
    model = replaced(target, name).train()
    params = {n: p for layer in layers(model) for n, p in layer.named_parameters(prefix=str(id(layer)))}
    for p in model.parameters():  # residual branches start closed, by a batch norm's zero or a layer scale of 1e-6
        if p.detach().abs().max() < 1e-3:
            nn.init.ones_(p)
    values = {n: p.detach().clone() for n, p in params.items()}
    optimizer = torch.optim.AdamW(s4nd.param_groups(model, lr=1e-2, weight_decay=0.05))
    (model(images(name)) * torch.randn(2, 5)).sum().backward()
    assert [n for n, p in params.items() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()] == []
    optimizer.step()
    assert [n for n, p in params.items() if torch.equal(p, values[n])] == []


@every_case
def test_fused_copied_and_reloaded_models_compute_the_same(target, name):
    model, x = replaced(target, name), images(name)
    with torch.no_grad():
        model.train()(x)  # batch norms with statistics of their own
        expected = model.eval()(x)
        fused = reparameterize_model(model)
        assert not layers(fused)
        # float32 through the whole depth, in another order: roundings of 6e-8 that batch norms may amplify
        assert_close(fused(x), expected, 1e-4)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        other = replaced(target, name, seed=1).eval()
        assert not torch.equal(other(x), expected)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize("name", ["deit", "eva", "vit_registers"])
def test_class_token_and_patches_depend_on_each_other(name):
    """At either end of the sequence, in a single layer."""
    mixer = next(m for m in replaced("attention", name).modules() if isinstance(m, AttentionMixer))
    N, D = mixer.mixer.s4nd.base_size[0], mixer.mixer.s4nd.d_model
    x = torch.randn(1, N, D, requires_grad=True)
    for here, there in ((0, N - 1), (N - 1, 0)):
        (grad,) = torch.autograd.grad(mixer(x)[:, here].square().sum(), x)
        # White tokens and kernels as wide as the sequence: no less than a hundredth of the average influence.
        assert grad[:, there].norm() > 0.01 * grad.norm() / N**0.5


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4),
        nn.Conv2d(4, 4, (5, 3), stride=(2, 1), padding=(2, 2), dilation=(1, 2), groups=4),
        nn.Conv2d(4, 4, 5, padding="same", groups=4),
        Conv2dSame(4, 12, 5, stride=3, groups=4),
        MixedConv2d(4, 4, [3, 5], stride=2, depthwise=True),
        MobileOneBlock(4, 8, 3, stride=2, group_size=1, use_se=True),
        ReparamLargeKernelConv(4, 8, 7, stride=2, group_size=1, small_kernel=3, use_se=True),
        RepConditionalPosEnc(4),
        ByobMobileOneBlock(4, 4, 3, group_size=1),
        ByobMobileOneBlock(4, 4, 3, stride=2, group_size=1),
        ByobMobileOneBlock(4, 8, 3, group_size=1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_strides_multiples_and_blocks_give_the_same_shapes_on_every_grid(layer):
    def model():
        return nn.Sequential(nn.Conv2d(3, 4, 1), copy.deepcopy(layer), nn.ReLU())

    before, after = model().eval(), replace(model(), img_size=12, **OPTIONS).eval()
    assert not has_target("depthwise", after)
    for size in ((12, 12), (11, 7), (1, 2), (6, 13)):
        x = torch.randn(2, 3, *size)
        assert after(x).shape == before(x).shape
        assert_close(reparameterize_model(after)(x), after(x), 1e-5)


def test_what_follows_the_branches_of_a_block_stays():
    block = MobileOneBlock(4, 4, 3, group_size=1, use_se=True)
    model = replace(nn.Sequential(nn.Conv2d(3, 4, 1), block), img_size=8, **OPTIONS)
    assert [type(m) for m in model[1]] == [S4ND, nn.BatchNorm2d, type(block.se), nn.GELU]
    assert model[1][2] is block.se


def test_shared_layer_is_replaced_everywhere_and_stays_shared():
    conv = nn.Conv2d(3, 3, 3, padding=1, groups=3)
    model = replace(nn.Sequential(conv, nn.ReLU(), conv), img_size=8, **OPTIONS)
    assert isinstance(model[0], S4ND)
    assert model[2] is model[0]


def test_first_convolution_of_a_grey_image_is_no_depthwise_one():
    model = replace(timm.create_model("convmixer_768_32", in_chans=1, device="meta"), img_size=32)
    assert isinstance(model.stem[0], nn.Conv2d)


def test_layer_that_is_not_reached_is_refused():
    model = nn.ModuleDict(
        {"used": nn.Conv2d(3, 3, 3, padding=1, groups=3), "unused": nn.Conv2d(3, 3, 3, padding=1, groups=3)}
    )
    model.forward = model["used"].forward
    with pytest.raises(ValueError, match=r"does not reach \['used', 'unused'\]"):
        replace(model, img_size=8)


@pytest.mark.parametrize("target", ["depthwise", "attention"])
def test_finding_the_grids_leaves_no_trace(target):
    model = original(target, "fastvit").train()
    model.stem.eval()
    model.stages[0].requires_grad_(False)
    training = {m: m.training for m in model.modules()}
    kept = {n: t.clone() for n, t in model.state_dict().items()}
    assert replace(model, target, img_size=64, **OPTIONS) is model
    assert all(m.training == training.get(m, m.training) for m in model.modules())
    assert all(torch.equal(t, kept[n]) for n, t in model.state_dict().items() if n in kept)
    assert not [m for m in model.modules() if m._forward_hooks]


def test_new_layers_follow_dtype_and_training_mode():
    model = timm.create_model("convnext_atto", **STAGES).to(torch.float64)
    model.stages[1].eval()
    replace(model, img_size=64, **OPTIONS)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert [layer.training for layer in layers(model)] == [True, False, True, True]


def test_model_on_the_meta_device_stays_there():
    model = replace(timm.create_model("fastvit_t8", device="meta", **fastvit), img_size=64)
    assert all(p.is_meta for p in model.parameters())


def test_trained_size_is_the_models_own_if_none_is_given():
    model = replace(timm.create_model("deit_tiny_patch16_224", depth=1, img_size=(32, 64)), "attention", **OPTIONS)
    assert layers(model)[0].base_size == (1 + 2 * 4,)
    assert layers(replace(timm.create_model("convnext_atto", **STAGES), **OPTIONS))[0].base_size == (56, 56)


def test_options_reach_every_layer_and_the_papers_are_the_default():
    for layer in layers(replaced("depthwise", "convnext", init="inv", bandlimit=0.5, rank=2)):
        assert (layer.bandlimit, layer.rank, layer.d_state) == (0.5, 2, 4)
    for target, name, dt_min, dt_max in (("depthwise", "convnext", 0.1, 1.0), ("attention", "deit", 0.001, 0.1)):
        for layer in layers(replaced(target, name, kernel="s4")):
            for kernel in layer.kernels:
                dt = kernel.log_dt.exp()
                assert isinstance(kernel, KERNELS["s4"])
                assert dt_min * (1 - 1e-6) <= dt.min() <= dt.max() <= dt_max * (1 + 1e-6)


def test_identity_branch_becomes_the_layers_skip():
    model = replaced("depthwise", "repvit")
    mixer = model.stages[0].blocks[0].token_mixer
    assert [type(m) for m in mixer] == [S4ND, nn.BatchNorm2d]
    assert mixer[0].D.eq(1).all()
    assert not model.stages[1].downsample.spatial_downsample.c[0].D.eq(1).all()


def test_settings_of_the_kernels_are_read():
    model = replaced("attention", "deit")
    assert s4nd.no_weight_decay(model) == {
        n for n, _ in model.named_parameters() if ".kernels." in n and not n.endswith(".C")
    }


def test_attention_mask_is_refused_and_positions_are_not_used():
    model = replaced("attention", "eva").eval()
    mixer, x = model.blocks[0].attn, torch.randn(1, 5, 24)
    assert torch.equal(mixer(x, rope=torch.randn(5, 24)), mixer(x))
    for mask in (dict(attn_mask=torch.ones(5, 5)), dict(is_causal=True)):
        with pytest.raises(ValueError, match="S4ND has no attention mask"):
            mixer(x, **mask)


@pytest.mark.parametrize(
    ("target", "name", "needed", "got"),
    [
        ("depthwise", "resnet10t", "groups == in_channels", "none of the 14 Conv2d of ResNet"),
        ("depthwise", "poolformer_s12", "groups == in_channels", "of MetaFormer"),
        ("depthwise", "cpubone_nano", "keep the grid", r"kernel_size=\(2, 2\), stride=\(2, 2\)"),
        ("depthwise", "tf_efficientnet_cc_b0_4e", "the same for every image", "conv_dw is CondConv2d"),
        ("attention", "convnext_atto", "self-attention of all tokens", "ConvNeXt has no attention"),
        ("attention", "swin_tiny_patch4_window7_224", "self-attention of all tokens", "WindowAttention"),
        ("attention", "hiera_tiny_224", "self-attention of all tokens", "MaskUnitAttention"),
        ("attention", "xcit_nano_12_p16_224", "self-attention of all tokens", "XCiT|Xcit"),
    ],
)
def test_what_cannot_be_replaced_is_refused_by_name(target, name, needed, got):
    with pytest.raises(ValueError, match=f"{needed}.*({got})"):
        replace(timm.create_model(name, device="meta"), target)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"target must be one of \['attention', 'depthwise'\], got 'conv'", dict(target="conv")),
        (ValueError, "img_size must be a positive integer or two", dict(img_size=0)),
        (ValueError, "img_size must be a positive integer or two", dict(img_size=(8, 8, 8))),
        (TypeError, "replace sets channels, pool", dict(pool=2, channels=2)),
        (TypeError, "takes no d_stat", dict(d_stat=4)),
        (ValueError, "kernel must be one of", dict(kernel="s5")),
    ],
)
def test_wrong_arguments_are_refused_and_the_model_is_as_it_was(error, message, arguments):
    model = timm.create_model("convnext_atto", **STAGES).eval()
    names = [type(m) for m in model.modules()]
    with pytest.raises(error, match=message):
        replace(model, **{"img_size": 64, **arguments})
    assert [type(m) for m in model.modules()] == names
