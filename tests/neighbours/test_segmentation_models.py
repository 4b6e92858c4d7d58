"""segmentation_models_pytorch over S4ND encoders, against timm's features of the same weights."""

import pytest
import timm
import torch
from safetensors.torch import save_file

import s4nd
from s4nd.models.shipped import shipped_file, shipped_tags
from tests.small import layers

smp = pytest.importorskip(
    "segmentation_models_pytorch", reason="needs segmentation_models_pytorch: pip install segmentation-models-pytorch"
)

SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 24), d_state=4, img_size=64, ls_init_value=1.0)
ENCODERS = {"s4nd_convnext_micro": dict(SMALL, stem_channels=4), "s4nd_convnext_tiny": SMALL}
# Every decoder of the package that takes encoders of several strides: the fewest options that make it small.
DECODERS = {
    "Unet": dict(decoder_channels=(16, 16, 8, 8, 8)),
    "UnetPlusPlus": dict(decoder_channels=(16, 16, 8, 8, 8)),
    "MAnet": dict(decoder_channels=(16, 16, 8, 8, 8)),
    "Linknet": dict(),
    "FPN": dict(decoder_pyramid_channels=16, decoder_segmentation_channels=32),
    "PSPNet": dict(psp_out_channels=8),
    "PAN": dict(decoder_channels=8),
    "DeepLabV3": dict(decoder_channels=8),
    "DeepLabV3Plus": dict(decoder_channels=8),
    "UPerNet": dict(decoder_channels=8),
    "Segformer": dict(decoder_segmentation_channels=8),
}
LARGER = (64, 96)  # than the encoders' trained size
DPT = dict(encoder_depth=2, decoder_readout="ignore", decoder_intermediate_channels=(8, 8), decoder_fusion_channels=8)

every_encoder = pytest.mark.parametrize("name", ENCODERS)


def network(decoder="Unet", name="s4nd_convnext_micro", **changes):
    torch.manual_seed(0)
    options = {"encoder_weights": None, "classes": 3, **DECODERS[decoder], **ENCODERS[name], **changes}
    return getattr(smp, decoder)(f"tu-{name}", **options)


def images(height, width, channels=3, seed=0):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed))


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("decoder", DECODERS)
@every_encoder
def test_answers_for_each_pixel_and_every_parameter_of_the_encoder_gets_a_gradient(name, decoder):
    net = network(decoder, name)
    height, width = (256, 160) if decoder == "PAN" else LARGER  # PAN pools the last features three times
    masks = net(images(height, width))
    assert masks.shape == (2, 3, height, width)
    masks.square().mean().backward()
    used = net.encoder.model.stages_0 if decoder == "PSPNet" else net.encoder
    assert [n for n, p in used.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(("depth", "channels"), [(5, 3), (4, 1), (3, 4)])
@every_encoder
def test_encoder_gives_timms_features_of_its_weights(name, depth, channels):
    encoder = smp.encoders.get_encoder(f"tu-{name}", channels, depth, **ENCODERS[name]).eval()
    indices = tuple(range(depth - 1))
    timms = timm.create_model(name, features_only=True, in_chans=channels, out_indices=indices, **ENCODERS[name]).eval()
    timms.load_state_dict(encoder.model.state_dict())
    x = images(*LARGER, channels)
    features = encoder(x)
    assert [f.shape[1] for f in features] == encoder.out_channels == [channels, 0, 8, 16, 16, 24][: depth + 1]
    assert features[0] is x and equal(features[2:], timms(x))
    assert [f.shape[2:] for f in features] == [(64 // 2**i, 96 // 2**i) for i in range(depth + 1)]


@pytest.mark.parametrize(("depth", "channels"), [(4, 1), (3, 4)])
@every_encoder
def test_network_takes_fewer_stages_and_other_channels(name, depth, channels):
    net = network("Unet", name, in_channels=channels, encoder_depth=depth, decoder_channels=(16, 8, 8, 8)[:depth])
    assert net(images(*LARGER, channels)).shape == (2, 3, *LARGER)


@pytest.mark.parametrize(("stride", "strides"), [(16, (4, 8, 16, 16)), (8, (4, 8, 8, 8))])
@every_encoder
def test_output_stride_keeps_the_last_stages_fine(name, stride, strides):
    net = network("DeepLabV3", name, encoder_output_stride=stride)
    assert [64 // f.shape[2] for f in net.encoder(images(*LARGER))[2:]] == [*strides]


def test_unet_takes_any_size_and_others_say_which():
    assert network("Unet")(images(70, 101)).shape == (2, 3, 70, 101)
    with pytest.raises(RuntimeError, match=r"divisible by 32\. Consider pad your images to shape \(96, 128\)"):
        network("FPN")(images(70, 101))


@every_encoder
def test_saved_network_answers_the_same_at_every_size(name, tmp_path):
    """Another resampling method and bandlimit than the config of the folder says, which has no word for them."""
    net, sizes = network("Unet", name).eval(), [(64, 64), LARGER]
    before = [net(images(*size)) for size in sizes]
    s4nd.set_resample(net, "dilate" if name == "s4nd_convnext_tiny" else "continuous")
    s4nd.set_bandlimit(net, 0.5)
    expected = [net(images(*size)) for size in sizes]
    assert not torch.equal(expected[1], before[1])
    net.save_pretrained(tmp_path)
    for load in (smp.from_pretrained, smp.Unet.from_pretrained):
        again = load(tmp_path).eval()
        assert equal([again(images(*size)) for size in sizes], expected)
    other = network("Unet", name, img_size=96).eval()
    other.load_state_dict(net.state_dict())
    assert equal([other(images(*size)) for size in sizes], expected)
    assert [layer.sampling for layer in layers(other).values()] == [layer.sampling for layer in layers(net).values()]


@pytest.mark.parametrize("channels", [3, 1, 4])
def test_pretrained_weights_are_loaded_and_adapted_to_other_channels(tmp_path, channels):
    name = "s4nd_convnext_tiny"
    torch.manual_seed(1)
    whole = timm.create_model(name, num_classes=5, **SMALL).eval()
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    overlay = dict(pretrained_cfg_overlay=dict(file=str(tmp_path / "weights.safetensors"), num_classes=5))
    net = network("Unet", name, encoder_weights=True, in_channels=channels, **overlay).eval()
    timms = timm.create_model(name, pretrained=True, features_only=True, in_chans=channels, **overlay, **SMALL).eval()
    x = images(*LARGER, channels)
    assert equal(net.encoder(x)[2:], timms(x))
    if channels == 3:
        assert equal(net.encoder(x)[2:], whole.forward_intermediates(x, intermediates_only=True))


def test_weights_that_do_not_exist_are_refused_by_name():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for s4nd_convnext_micro"):
        network(encoder_weights=True)


# ---- models of one stride


@pytest.mark.parametrize("name", ["s4nd_iso_tiny", "s4nd_seq_tiny", "s4nd_vit_tiny_patch16_224"])
def test_encoders_of_several_strides_cannot_be_of_one(name):
    with pytest.raises(ValueError, match="Unsupported model downsampling pattern"):
        smp.Unet(f"tu-{name}", encoder_weights=None)


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("s4nd_vit_tiny_patch16_224", dict(img_size=64, embed_dim=8, num_heads=2, d_state=4), (64, 96)),
        ("s4nd_iso_tiny", dict(img_size=16, embed_dim=8, d_state=4), (16, 24)),
    ],
)
def test_dpt_takes_models_of_one_stride(name, args, size):
    net, x = smp.DPT(f"tu-{name}", encoder_weights=None, classes=3, **DPT, **args).eval(), images(*size)
    expected = net.encoder.model.forward_intermediates(x, intermediates_only=True)
    middle, last = len(expected) // 2 - 1, len(expected) - 1
    assert equal(net.encoder(x)[0], [expected[middle], expected[last]])
    masks = net(x)
    height, width = masks.shape[2:]
    assert masks.shape[:2] == (2, 3) and height * size[1] == width * size[0]
    masks.square().mean().backward()
    assert [n for n, p in net.encoder.model.blocks.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("tag", shipped_tags())
def test_shipped_weights_and_their_preprocessing(tag):
    net = smp.DPT(f"tu-{tag}", encoder_weights=True, **DPT)
    state = timm.models.load_state_dict(shipped_file(tag))
    ours = net.encoder.model.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in state.items() if not key.startswith("head."))
    cfg, params = timm.get_pretrained_cfg(tag), smp.encoders.get_preprocessing_params(f"tu-{tag}")
    assert (params["mean"], params["std"]) == ([*cfg.mean], [*cfg.std])
