"""Folders of `s4nd export --hub` against the model of the checkpoint, through timm (tests/neighbours has transformers); what is
refused."""

import json
import re

import pytest
import timm
import torch
import yaml

from s4nd import S4ND
from s4nd.train.card import recipe
from s4nd.train.checkpoint import Meta, load_model, save_checkpoint
from s4nd.train.cli import main
from s4nd.train.commands import hub
from s4nd.train.commands.hub import export_hub
from s4nd.train.config import config_from_dict, config_to_dict, load_config
from s4nd.train.model import build_model
from s4nd.train.resolution import Curve, save_curves
from s4nd.train.state import EXEMPT, flatten
from tests.made_runs import write_checkpoint

CLASSES = ["cat", "dög"]
STAGES = dict(depths=[1, 1, 1, 1], dims=[4, 8, 12, 16])
# A model's name, its arguments and its size; S4ND of one and of several grids, of a sequence, and none.
MODELS = {
    "iso": ("s4nd_iso_tiny", dict(embed_dim=8, depth=2, d_state=4, drop_path_rate=0.1), 8),
    "tag": ("s4nd_iso_tiny.cifar10", dict(embed_dim=8, depth=1), 8),
    "seq": ("s4nd_seq_tiny", dict(embed_dim=8, depth=1, d_state=4), 6),
    "convnext": ("s4nd_convnext_micro", dict(STAGES, d_state=4, stem_channels=4), 40),
    "vit": ("s4nd_vit_tiny_patch16_224", dict(embed_dim=8, depth=1, num_heads=2, d_state=4), 48),
    "timm": ("convnext_atto", STAGES, 32),
}


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(model=key of MODELS, data={}, stage={}, args={}, **of Meta) -> path of an untrained model's checkpoint."""

    def write(model="iso", args=None, **more):
        name, own, size = MODELS[model]
        path = tmp_path / "run" / "last.safetensors"
        return write_checkpoint(path, name, {**own, **(args or {})}, size, more.pop("classes", CLASSES), **more)

    return write


def images(*size, channels=3):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))


def read(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", MODELS)
def test_timm_loads_the_folder_and_it_answers_as_the_checkpoint(checkpoint, tmp_path, model):
    folder, size = tmp_path / "hub", MODELS[model][2]
    expected = load_model(checkpoint(model))[0]
    assert export_hub(tmp_path / "run" / "last.safetensors", folder) == folder
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    found = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    for n in (size, size + 16):
        assert torch.equal(found(images(n, n)), expected(images(n, n)))
    cfg = found.pretrained_cfg
    assert (tuple(cfg["input_size"]), cfg["num_classes"], cfg["label_names"]) == ((3, size, size), 2, CLASSES)
    assert "tag" not in cfg and "license" not in cfg
    assert type(timm.create_model(f"local-dir:{folder}")) is type(expected)


def test_arguments_bandlimit_and_way_to_other_sizes_travel(checkpoint, tmp_path):
    path = checkpoint(stage={"bandlimit": 0.5, "resample": "dilate"}, args={"kernel": "s4", "init": "legs"})
    expected = load_model(path)[0]
    found = timm.create_model(f"local-dir:{export_hub(path, tmp_path / 'hub')}", pretrained=True).eval()
    (sampling,) = {m.sampling for m in found.modules() if isinstance(m, S4ND)}
    assert (sampling.base_size, sampling.bandlimit, sampling.resample) == ((8, 8), 0.5, ("dilate", "dilate"))
    assert torch.equal(found(images(20, 12)), expected(images(20, 12)))
    args = read(tmp_path / "hub")["model_args"]
    assert args["kernel"] == "s4" and args["depth"] == 2 and "num_classes" not in args


def test_the_transform_is_that_of_the_run(checkpoint, tmp_path):
    path = checkpoint(data={"crop_pct": 0.75, "interpolation": "bicubic"})
    model = timm.create_model(f"local-dir:{export_hub(path, tmp_path / 'hub')}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert (config["crop_pct"], config["interpolation"], config["input_size"]) == (0.75, "bicubic", (3, 8, 8))
    assert config["mean"] == [0.4914, 0.4822, 0.4465]


def test_grey_model_says_its_one_channel(checkpoint, tmp_path):
    path = checkpoint(args={"in_chans": 1})
    folder = export_hub(path, tmp_path / "hub")
    found = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(found(images(8, 8, channels=1)), load_model(path)[0](images(8, 8, channels=1)))
    cfg = read(folder)["pretrained_cfg"]
    assert (cfg["input_size"], len(cfg["mean"]), len(cfg["std"])) == ([1, 8, 8], 1, 1)
    assert "of grey images" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("task", "majority"), [("single-label", []), ("multi-label", [0, 1])])
def test_the_task_is_said(checkpoint, tmp_path, task, majority):
    folder = export_hub(checkpoint(task=task, majority=majority), tmp_path / "hub")
    assert read(folder)["problem_type"] == f"{task.replace('-', '_')}_classification"
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert ("each logit is of a sigmoid" in text) == (task == "multi-label")
    assert ("Mean accuracy over the attributes 62.5 %" in text) == (task == "multi-label")


# ---- the card


def test_card_says_the_accuracies_that_are_of_these_weights(checkpoint, tmp_path):
    path = checkpoint()
    curves = [
        Curve("mine, dilate", 8, {8: 0.625, 16: 0.5}),
        Curve("other weights", 8, {8: 0.75, 16: 0.125}),
        Curve("other size", 16, {8: 0.625, 16: 0.25}),
        Curve("other file of the same accuracy", 8, {8: 0.625, 16: 0.375}, about={"sha256": "0" * 64}),
        Curve("majority", None, {8: 0.625}),
    ]
    save_curves(curves, path.with_name("resolution.json"))
    text = (export_hub(path, tmp_path / "hub") / "README.md").read_text(encoding="utf-8")
    assert "Accuracy 62.5 % at 8 x 8, on the test split, after epoch 3." in text
    assert "| | 8 (trained) | 16 |\n| --- | --- | --- |\n| mine, dilate | 62.5 | 50.0 |\n" in text
    assert "other" not in text.partition("## Accuracy")[2] and "majority" not in text


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (
            dict(best=True),
            "on the test split, after epoch 3; it chose these weights among the epochs, which flatters them",
        ),
        (dict(split="validation"), "on the validation split of the training images, after epoch 3."),
    ],
)
def test_card_says_what_chose_the_weights(checkpoint, tmp_path, about, said):
    assert said in (export_hub(checkpoint(**about), tmp_path / "hub") / "README.md").read_text(encoding="utf-8")


def test_card_claims_no_licence_and_names_no_place(checkpoint, tmp_path):
    data = {"name": "folder", "root": str(tmp_path / "images")}
    text = (export_hub(checkpoint(data=data), tmp_path / "hub") / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["library_name"]) == ("unknown", "timm")
    assert str(tmp_path) not in text and str(tmp_path) not in json.dumps(read(tmp_path / "hub"))


def test_recipe_is_the_config_but_for_places(tmp_path):
    tree = {
        "data": {"name": "hfds//home/me/faces", "root": str(tmp_path), "pad": 0.125, "workers": 2},
        "model": {"name": "s4nd_iso_small", "args": {"depth": 3, "kernel": ["s4d", "s4d"]}},
        "stages": [{"size": 8, "epochs": 1}, {"size": 16, "bandlimit": 0.5}],
        "init": {"weights": str(tmp_path / "w.safetensors")},
        "optim": {"opt": "muon", "args": {"momentum": 0.9}},
        "out": str(tmp_path),
        "seed": 3,
    }
    config = config_from_dict(tree, "the test")
    (tmp_path / "again.yaml").write_text(recipe(config), encoding="utf-8")
    assert str(tmp_path) not in recipe(config) and "/home" not in recipe(config)
    assert {*yaml.safe_load(recipe(config))["data"]} == {"name", "pad"} and "out" not in yaml.safe_load(recipe(config))
    again = load_config(tmp_path / "again.yaml")
    kept = [
        {key: value for key, value in flatten(config_to_dict(c)).items() if key not in EXEMPT} for c in (config, again)
    ]
    assert (
        kept[0].pop("init.weights") == str(tmp_path / "w.safetensors")
        and kept[1].pop("init.weights") == "w.safetensors"
    )
    assert kept[0].pop("data.name") == "hfds//home/me/faces" and kept[1].pop("data.name") == "hfds/faces"
    assert kept[0] == kept[1]


# ---- what is refused


def test_only_a_new_or_empty_folder_is_written(checkpoint, tmp_path):
    path, folder = checkpoint(), tmp_path / "hub"
    folder.mkdir()
    export_hub(path, folder)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    for wrong in (folder, path):
        with pytest.raises(ValueError, match=r"the hub's folder must be new or empty, and .* is not"):
            export_hub(path, wrong)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere for hub"):
        export_hub(path, tmp_path / "nowhere" / "hub")


def test_nothing_is_left_of_a_folder_that_does_not_come_back_as_it_was(checkpoint, tmp_path, monkeypatch):
    path = checkpoint()
    load = hub.load_model

    def other(path):
        model, config, meta = load(path)
        model.register_forward_hook(lambda module, args, logits: logits + 1)
        return model, config, meta

    monkeypatch.setattr(hub, "load_model", other)
    with pytest.raises(ValueError, match="gives other logits than the checkpoint's model"):
        export_hub(path, tmp_path / "hub")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_model_that_restores_images_is_refused(tmp_path):
    tree = {"model": {"name": "s4nd_iso_tiny"}, "stages": [{"size": 8}], "data": dict(name="photos", noise=25.0)}
    config = config_from_dict(tree, "the test")
    meta = Meta(1, 0, 20.0, [], "model", task="restoration")
    save_checkpoint(tmp_path / "r.safetensors", build_model(config, 0).state_dict(), config, meta)
    with pytest.raises(ValueError, match=r"is for single-label and multi-label models, .* is of restoration"):
        export_hub(tmp_path / "r.safetensors", tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_model_of_videos_is_refused(tmp_path):
    tree = {
        "model": {"name": "s4nd_convnext3d_micro", "args": dict(depths=[1, 1, 1, 1], dims=[4, 4, 8, 8], d_state=4)},
        "stages": [{"size": 32}],
        "data": dict(name="video", root="videos", frames=4),
    }
    config = config_from_dict(tree, "the test")
    save_checkpoint(
        tmp_path / "v.safetensors", build_model(config, 2).state_dict(), config, Meta(1, 0, 0.5, CLASSES, "model")
    )
    with pytest.raises(ValueError, match=r"the hub's layout is for models of images, .* is of the videos of video"):
        export_hub(tmp_path / "v.safetensors", tmp_path / "hub")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"export writes one of OUT \(model.onnx or model.pt2\) and --hub DIR"),
        (["model.onnx", "--hub", "hub"], "export writes one of OUT"),
        (["--hub", "hub", "--size", "32"], "--hub is for every size; --size is for OUT"),
        (["--hub", "hub", "--frames", "3", "--opset", "18"], "--hub is for every size; --frames, --opset is for OUT"),
    ],
)
def test_command_names_what_does_not_go_together(checkpoint, capsys, arguments, message):
    assert main(["export", str(checkpoint()), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_command_writes_the_folder_and_says_how_to_load_it(checkpoint, tmp_path, capsys):
    path, folder = checkpoint(), tmp_path / "hub"
    assert main(["export", str(path), "--hub", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{folder}: load it with timm.create_model('local-dir:{folder}', pretrained=True)")
    assert (folder / "model.safetensors").is_file()
