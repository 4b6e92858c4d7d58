"""The weights that ship with the package: through timm's own mechanism, against their files, their cards and real images."""

import hashlib
import json
import re

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from s4nd import S4ND
from s4nd.models.shipped import WEIGHTS, shipped_file, shipped_tags
from s4nd.train.card import accuracy_table
from s4nd.train.data import ImageTransforms, Rendering, build_dataset, make_loader
from s4nd.train.model import to_input

TAGS = ["s4nd_iso_tiny.cifar10", "s4nd_iso_tiny.photos"]
HEAD = ("head.fc.weight", "head.fc.bias")

every_tag = pytest.mark.parametrize("tag", TAGS)


def load(tag, **args):
    return timm.create_model(tag, pretrained=True, **args).eval()


def images(*size, channels=3):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))


def card(tag):
    return shipped_file(tag).with_suffix(".md").read_text(encoding="utf-8")


def rows(text, first):
    """The body of the table of the card whose first heading is `first`."""
    lines = text[text.index(f"| {first} |".replace("  ", " ")) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_timm_lists_what_ships_and_nothing_else():
    assert shipped_tags() == TAGS
    ours = [name for name in timm.list_pretrained() if timm.get_pretrained_cfg(name).file]
    assert ours == TAGS == timm.list_models("s4nd*", pretrained=True)


def test_the_weights_are_float32_and_at_most_a_megabyte_in_all():
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) <= 10**6
    for tag in TAGS:
        kinds = {key: value.dtype for key, value in load_file(shipped_file(tag)).items()}
        assert {dtype for key, dtype in kinds.items() if not key.endswith("_extra_state")} == {torch.float32}


@every_tag
def test_model_has_the_weights_of_the_file(tag):
    state, file = load(tag).state_dict(), load_file(shipped_file(tag))
    assert state.keys() == file.keys() and all(torch.equal(state[key], file[key]) for key in file)


@every_tag
def test_model_answers_as_trained_whatever_the_size_that_it_was_built_for(tag):
    model, trained = load(tag), timm.get_pretrained_cfg(tag).input_size[1:]
    assert model.img_size == trained
    for size in (13, 48):
        other = load(tag, img_size=size)
        samplings = [{m.sampling for m in each.modules() if isinstance(m, S4ND)} for each in (model, other)]
        assert samplings[0] == samplings[1] and {s.base_size for s in samplings[0]} == {trained}
        for x in (images(*trained), images(size, size), images(40, 9)):
            assert torch.equal(other(x), model(x))


@every_tag
def test_other_classes_get_a_classifier_as_drawn(tag):
    torch.manual_seed(0)
    drawn = timm.create_model("s4nd_iso_tiny", num_classes=100).state_dict()
    torch.manual_seed(0)
    state, file = load(tag, num_classes=100).state_dict(), load_file(shipped_file(tag))
    for key, value in state.items():
        assert torch.equal(value, drawn[key] if key in HEAD else file[key]), key
    assert not [key for key in HEAD if key in load(tag, num_classes=0).state_dict()]


@every_tag
def test_grey_images_have_the_answer_of_the_same_in_colour(tag):
    x = images(16, 16, channels=1)
    expected = load(tag)(x.expand(-1, 3, -1, -1))
    # Sums of three products in another order, in every layer after: some roundings of the largest logit.
    torch.testing.assert_close(load(tag, in_chans=1)(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@every_tag
def test_features_are_those_of_the_whole_model(tag):
    x = images(16, 16)
    found = load(tag, features_only=True)(x)
    expected = load(tag).forward_intermediates(x, indices=3, intermediates_only=True)
    assert len(found) == 3 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_overlay_or_a_checkpoint_names_other_weights(tmp_path):
    file = {key: value.clone() for key, value in load_file(shipped_file(TAGS[0])).items()}
    file["head.fc.bias"] += 1
    save_file(file, tmp_path / "other.safetensors")
    x, ours = images(16, 16), load(TAGS[0])
    expected = ours(x) + 1
    over = load(TAGS[0], pretrained_cfg_overlay={"file": str(tmp_path / "other.safetensors")})
    for other in (over, timm.create_model(TAGS[0], checkpoint_path=tmp_path / "other.safetensors").eval()):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=1e-5)
    alone = timm.create_model("s4nd_iso_tiny", pretrained=True, pretrained_cfg_overlay={"state_dict": file}).eval()
    torch.testing.assert_close(alone(x), expected, rtol=0, atol=1e-5)
    assert timm.create_model(TAGS[0], pretrained_cfg_overlay={"mean": (0.5,) * 3}).pretrained_cfg["mean"] == (0.5,) * 3


def test_the_name_alone_is_drawn_as_ever_and_names_its_tags_when_asked_for_weights():
    model = timm.create_model("s4nd_iso_tiny")
    assert (model.img_size, model.num_classes) == ((32, 32), 10)
    cfg = timm.get_pretrained_cfg("s4nd_iso_tiny")
    assert (cfg.input_size, cfg.mean) == ((3, 32, 32), (0.4914, 0.4822, 0.4465)) and not (cfg.has_weights or cfg.tag)
    with pytest.raises(RuntimeError, match=r"weights exist for s4nd_iso_tiny alone, but for .*cifar10, .*photos"):
        timm.create_model("s4nd_iso_tiny", pretrained=True)
    with pytest.raises(RuntimeError, match="No pretrained weights exist for conv_iso_tiny"):
        timm.create_model("conv_iso_tiny", pretrained=True)


@every_tag
def test_a_tag_without_its_weights_is_built_for_its_size(tag):
    model, cfg = timm.create_model(tag), timm.get_pretrained_cfg(tag)
    assert model.img_size == cfg.input_size[1:] and model.num_classes == cfg.num_classes
    assert {layer.base_size for layer in model.modules() if isinstance(layer, S4ND)} == {cfg.input_size[1:]}


@every_tag
def test_the_hubs_folder_says_nothing_of_where_the_package_lies(tag, tmp_path):
    model, x = load(tag), images(24, 24)
    save_for_hf(model, tmp_path, safe_serialization=True)
    text = (tmp_path / "config.json").read_text()
    assert "safetensors" not in text and str(WEIGHTS) not in text and '"file"' not in text
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(x), model(x)) and again.pretrained_cfg["label_names"] == list(
        model.pretrained_cfg["label_names"]
    )


# ---- cards


@every_tag
def test_card_and_file_and_cfg_say_the_same(tag):
    text, cfg, path = card(tag), timm.get_pretrained_cfg(tag), shipped_file(tag)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    assert f"Trained at {cfg.input_size[1]} x {cfg.input_size[2]} pixels" in text
    assert f"less the mean {cfg.mean},\ndivided by the std {cfg.std}." in text
    assert f"in the order of the logits: {', '.join(cfg.label_names)}.\n" in text
    assert len(cfg.label_names) == cfg.num_classes and cfg.pool_size == cfg.input_size[1:]
    assert json.loads(about["classes"]) == list(cfg.label_names) and about["task"] == "single-label"
    assert json.loads(about["size"]) == list(cfg.input_size[1:])
    assert (cfg.license, cfg.crop_pct, cfg.interpolation) == ("apache-2.0", 1.0, "bilinear")
    plain = timm.get_pretrained_cfg("s4nd_iso_tiny")  # what a run that begins with the weights is normalised by
    assert (cfg.mean, cfg.std) == (plain.mean, plain.std)


@every_tag
def test_timms_transform_is_that_of_the_card(tag):
    config = timm.data.resolve_model_data_config(load(tag))
    cfg = timm.get_pretrained_cfg(tag)
    wanted = {
        "input_size": cfg.input_size,
        "mean": cfg.mean,
        "std": cfg.std,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    assert {key: config[key] for key in wanted} == wanted
    transform = timm.data.create_transform(**config)
    assert transform(Image.new("RGB", (90, 60))).shape == cfg.input_size


@every_tag
def test_no_card_names_a_place_of_a_machine(tag):
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|mnt|data)\b", card(tag))


def right_answers(tag, dataset, size):
    """Of a data set: the right answers, and how many images could be answered otherwise on another machine.

    Machines differ by roundings, which are below 1e-4 of the largest logit: an image is undecided if its two best are as near.
    """
    model = load(tag)
    loader = make_loader(dataset, size, 50, train=False, rendering=Rendering(transforms=ImageTransforms()))
    right = undecided = 0
    with torch.no_grad():
        for batch, labels in loader:
            logits = model(to_input(batch, model, torch.device("cpu")))
            best = logits.topk(2).values
            undecided += (best[:, 0] - best[:, 1] < 1e-4 * logits.abs().amax(1)).sum().item()
            right += (logits.argmax(1) == labels).sum().item()
    return right, undecided


def check_right_answers(tag, name, root=None):
    text = card(tag)
    limit = int(re.search(r"right of (\d+) \|", text)[1])
    dataset = build_dataset(name, root, "test", limit=limit)
    assert list(dataset.classes) == list(timm.get_pretrained_cfg(tag).label_names) and len(dataset) == limit
    counted = rows(text, "pixels per side")
    assert len(counted) == 2
    for size, said in counted:
        right, undecided = right_answers(tag, dataset, int(size))
        assert abs(right - int(said)) <= undecided, (size, right, said)


def test_photographs_are_answered_as_the_card_says():
    pytest.importorskip("skimage", reason="needs the extra: pip install 's4nd[demo]'")
    check_right_answers("s4nd_iso_tiny.photos", "photos")


def test_cifar10_is_answered_as_the_card_says(shared):
    pytest.importorskip("pyarrow", reason="needs the extra: pip install 's4nd[demo]'")
    check_right_answers("s4nd_iso_tiny.cifar10", "parquet", shared / "data" / "cifar10")


@every_tag
def test_the_models_own_way_and_its_control_are_in_the_table(tag):
    cfg, body = timm.get_pretrained_cfg(tag), rows(card(tag), "")
    assert (
        body[0][0].split("`")[1] in ("hold", "hold+dilate") and body[1][0] == f"control: resized to {cfg.input_size[1]}"
    )
    assert all(0 < float(cell) < 100 for row in body for cell in row[1:]) and len(body) == 2


def test_table_of_accuracies_has_a_column_per_size_and_marks_the_trained_one():
    table = accuracy_table({"a": {8: 0.5, 16: 0.123}, "b": {16: 1.0}}, 16)
    assert table == "| | 8 | 16 (trained) |\n| --- | --- | --- |\n| a | 50.0 | 12.3 |\n| b | - | 100.0 |\n"
