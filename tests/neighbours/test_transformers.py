"""transformers' wrappers of timm against timm: folders of `s4nd export --hub`, what is saved of them, backbones."""

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import s4nd
from s4nd.models.shipped import shipped_tags
from s4nd.train.checkpoint import load_model
from s4nd.train.commands.hub import export_hub
from tests.made_runs import write_checkpoint
from tests.small import layers

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")

CLASSES = ["cat", "dög"]
STAGES = dict(depths=[1, 1, 1, 1], dims=[4, 8, 12, 16], d_state=4)
# A model's name, its arguments and its size.
MODELS = {
    "iso": ("s4nd_iso_tiny", dict(embed_dim=8, depth=2, d_state=4), 8),
    "seq": ("s4nd_seq_tiny", dict(embed_dim=8, depth=1, d_state=4), 6),
    "convnext": ("s4nd_convnext_tiny", STAGES, 40),
    "convnext, S4ND stem": ("s4nd_convnext_micro", dict(STAGES, stem_channels=4), 40),
    "vit": ("s4nd_vit_tiny_patch16_224", dict(embed_dim=8, depth=2, num_heads=2, d_state=4), 48),
}

every_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever asks the hub fails."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def hub(tmp_path):
    """hub(key of MODELS, **of the stage) -> the folder of an untrained model, and that model."""

    def write(model, **stage):
        name, args, size = MODELS[model]
        path = write_checkpoint(tmp_path / "run" / "last.safetensors", name, args, size, CLASSES, stage=stage)
        return export_hub(path, tmp_path / "hub"), load_model(path)[0]

    return write


def classifier(folder, **args):
    return transformers.AutoModelForImageClassification.from_pretrained(folder, **args).eval()


def images(model, number=0):
    """Of the trained size, of a larger and of another that is not square."""
    n = MODELS[model][2]
    size = [(n, n), (n + 16, n + 16), (n + 8, n)][number]
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(number))


@torch.no_grad()
def answers(net, model):
    """Its logits at every size of `images`, of timm's or of transformers'."""
    return [getattr(y, "logits", y) for y in (net(images(model, number)) for number in range(3))]


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def samplings(net):
    return [layer.sampling for layer in layers(net).values()]


# ---- TimmWrapper


@every_model
def test_folder_answers_as_the_checkpoint_at_every_size(hub, model):
    folder, expected = hub(model, bandlimit=0.5)
    found = classifier(folder)
    assert type(found).__name__ == "TimmWrapperForImageClassification"
    assert equal(answers(found, model), answers(expected, model))
    assert samplings(found) == samplings(expected)
    assert found.config.id2label == dict(enumerate(CLASSES))
    assert found.config.label2id == {name: i for i, name in enumerate(CLASSES)}
    assert found.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("tag", shipped_tags())
def test_folder_of_a_shipped_tag_answers_as_the_tag(tmp_path, tag):
    shipped = timm.create_model(tag, pretrained=True).eval()
    cfg, path = shipped.pretrained_cfg, tmp_path / "run" / "last.safetensors"
    classes, n = list(cfg["label_names"]), cfg["input_size"][-1]
    write_checkpoint(path, tag, {}, n, classes, state=shipped.state_dict())
    found = classifier(export_hub(path, tmp_path / "hub"))
    assert found.config.id2label == dict(enumerate(classes))
    for size in ((n, n), (24, 20)):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        assert torch.equal(found(x).logits, shipped(x))


@every_model
def test_what_is_saved_answers_the_same_in_transformers_and_in_timm(hub, tmp_path, model):
    """Another trained size, resampling method and bandlimit than the folder had."""
    folder, _ = hub(model)
    net = classifier(folder)
    before = answers(net, model)
    if model != "seq":  # of which a change of the height is another sequence
        net.timm_model.set_input_size(img_size=MODELS[model][2] + 8)
    s4nd.set_resample(net, "dilate")
    s4nd.set_bandlimit(net, 0.5)
    expected = answers(net, model)
    assert not any(map(torch.equal, expected[1:], before[1:]))  # else nothing need travel
    net.save_pretrained(tmp_path / "saved")
    again = classifier(tmp_path / "saved")
    assert equal(answers(again, model), expected) and samplings(again) == samplings(net)
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    assert equal(answers(in_timm, model), expected)
    assert again.config.id2label == dict(enumerate(CLASSES))


@every_model
def test_model_without_its_classifier_has_timms_features(hub, model):
    folder, timms = hub(model)
    found, x = transformers.AutoModel.from_pretrained(folder).eval(), images(model, 2)
    assert type(found).__name__ == "TimmWrapperModel"
    output = found(x, output_hidden_states=True)
    final, every = timms.forward_intermediates(x)
    assert torch.equal(output.last_hidden_state, final) and equal(output.hidden_states, every)
    assert torch.equal(output.pooler_output, timms.forward_head(final, pre_logits=True))


@every_model
def test_loss_and_gradients_are_those_of_the_cross_entropy(hub, model):
    folder, timms = hub(model)
    found, x, labels = classifier(folder), images(model), torch.tensor([1, 0])
    loss = found(x, labels=labels).loss
    expected = F.cross_entropy(timms(x), labels)
    assert torch.equal(loss, expected)
    for one in (loss, expected):
        one.backward()
    theirs = dict(timms.named_parameters())
    assert all(torch.equal(p.grad, theirs[name].grad) for name, p in found.timm_model.named_parameters())


@every_model
def test_processor_makes_images_as_timms_transform(hub, tmp_path, model):
    folder, _ = hub(model)
    classifier(folder).save_pretrained(tmp_path / "saved")
    image = Image.effect_noise((90, 60), 64).convert("RGB")
    in_timm = timm.create_model(f"local-dir:{folder}")
    config = timm.data.resolve_model_data_config(in_timm)
    expected = timm.data.create_transform(**config)(image)
    n = MODELS[model][2]
    assert expected.shape == (3, n, n)
    for place in (folder, tmp_path / "saved"):
        processor = transformers.AutoImageProcessor.from_pretrained(place)
        assert torch.equal(processor(image).pixel_values[0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", ["iso", "convnext, S4ND stem", "vit"])
def test_half_precision_is_timms_and_leaves_the_kernels_whole(hub, model, dtype):
    """transformers casts the images to the dtype of the first parameter, which in an S4ND stem is float32."""
    folder, timms = hub(model)
    found = classifier(folder, dtype=dtype)
    timms.to(dtype)
    theirs = dict(timms.named_parameters())
    for name, p in found.timm_model.named_parameters():
        assert p.dtype == theirs[name].dtype and torch.equal(p, theirs[name]), name
    x = images(model, 1)
    logits = found(x).logits
    assert logits.dtype == dtype and torch.equal(logits, timms(x.to(found.dtype)))


# ---- TimmBackbone

# A model's name, its arguments, and a size that it was not trained at.
BACKBONES = {
    "s4nd_iso_tiny": (dict(img_size=8, embed_dim=8, depth=3, d_state=4), (12, 9)),
    "s4nd_seq_tiny": (dict(img_size=8, embed_dim=8, depth=3, d_state=4), (12, 9)),
    "s4nd_convnext_tiny": (dict(STAGES, img_size=64, ls_init_value=1.0), (64, 96)),
    "s4nd_convnext_micro": (dict(STAGES, img_size=64, stem_channels=4, ls_init_value=1.0), (64, 96)),
    "s4nd_vit_tiny_patch16_224": (dict(img_size=32, embed_dim=8, depth=3, num_heads=2, d_state=4), (48, 32)),
}

every_backbone = pytest.mark.parametrize("name", BACKBONES)


def backbone(name, indices=(0, 2), **changes):
    config = transformers.TimmBackboneConfig(backbone=name, out_indices=list(indices))
    torch.manual_seed(0)
    return transformers.AutoBackbone.from_config(config, **{**BACKBONES[name][0], **changes}).eval()


@pytest.mark.parametrize("indices", [(0, 2), (-1,)])
@every_backbone
def test_feature_maps_are_timms(name, indices):
    args, (height, width) = BACKBONES[name]
    found = backbone(name, indices)
    assert type(found).__name__ == "TimmBackbone"
    torch.manual_seed(0)
    timms = timm.create_model(name, features_only=True, out_indices=indices, **args).eval()
    x = torch.randn(2, 3, height, width)
    maps = found(x).feature_maps
    assert equal(maps, timms(x))
    assert found.channels == [f.shape[1] for f in maps]
    strides = timms.feature_info.reduction()
    assert [f.shape[2:] for f in maps] == [(height // stride, width // stride) for stride in strides]


@every_backbone
def test_gradients_reach_every_parameter_of_a_backbone(name):
    net = backbone(name, (0, -1))
    sum(f.square().sum() for f in net(torch.randn(2, 3, *BACKBONES[name][1])).feature_maps).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@every_backbone
def test_state_of_a_backbone_has_what_changes_its_features(name, tmp_path):
    net, x = backbone(name), torch.randn(2, 3, *BACKBONES[name][1])
    before = net(x).feature_maps
    s4nd.set_resample(net, "dilate")
    s4nd.set_bandlimit(net, 0.5)
    expected = net(x).feature_maps
    assert not any(map(torch.equal, expected, before))
    net.save_pretrained(tmp_path)
    other = backbone(name, img_size=BACKBONES[name][0]["img_size"] * 2)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert equal(other(x).feature_maps, expected) and samplings(other) == samplings(net)


@pytest.mark.parametrize("tag", shipped_tags())
def test_backbone_of_a_shipped_tag_has_its_weights(tag):
    """`AutoBackbone.from_pretrained` would first ask the hub whether it has a repository of that name."""
    found = transformers.TimmBackbone.from_pretrained(tag, out_indices=(1, 3)).eval()
    expected = timm.create_model(tag, pretrained=True, features_only=True, out_indices=(1, 3)).eval()
    x = torch.randn(2, 3, 20, 24)
    assert equal(found(x).feature_maps, expected(x))


@pytest.mark.slow
def test_network_of_transformers_trains_over_a_backbone():
    config = transformers.UperNetConfig(
        backbone_config=transformers.TimmBackboneConfig(backbone="s4nd_convnext_micro", out_indices=[0, 1, 2, 3]),
        hidden_size=16,
        pool_scales=[1, 2],
        auxiliary_in_channels=256,
        auxiliary_channels=8,
        num_labels=4,
    )
    net = transformers.UperNetForSemanticSegmentation(config)
    output = net(torch.randn(2, 3, 64, 96), labels=torch.randint(4, (2, 64, 96)))
    assert output.logits.shape == (2, 4, 64, 96)
    output.loss.backward()
    assert [n for n, p in net.backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
