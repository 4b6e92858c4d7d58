"""Files of `s4nd export` against the model of the checkpoint, and what it refuses."""

import importlib.util
import json
import re

import pytest
import torch

from s4nd.train.checkpoint import Meta, load_model, save_checkpoint
from s4nd.train.cli import main
from s4nd.train.commands.export import export_model
from s4nd.train.config import config_from_dict
from s4nd.train.model import build_model

META = Meta(epoch=1, stage=0, accuracy=0.5, classes=["cat", "dög"], weights="model")
CONVNEXT = dict(depths=[1, 1, 1, 1], dims=[4, 8, 12, 16], d_state=8)
onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)


VIDEO = dict(name="video", root="videos", frames=4, seconds=1.5, gamma=0.5, motion="moving")
VIDEO_NET = dict(depths=[1, 1, 1, 1], dims=[4, 4, 8, 8], ls_init_value=1.0)
SMALL_S4ND = dict(d_state=4, stem_channels=4)


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(model="s4nd_iso_tiny", size=8, data={}, **args of the model) -> path of an untrained model's checkpoint."""

    def write(model="s4nd_iso_tiny", size=8, data=None, **args):
        torch.manual_seed(0)
        args = args or dict(embed_dim=8, depth=1)
        tree = {"model": {"name": model, "args": args}, "stages": [{"size": size}], "data": data or {}}
        config = config_from_dict(tree, "the test")
        path = tmp_path / f"{model}.safetensors"
        save_checkpoint(path, build_model(config, 2).state_dict(), config, META)
        return path

    return write


def test_pt2_file_computes_what_the_model_does_and_names_the_classes(checkpoint, tmp_path, capsys):
    path, out = checkpoint(data={"crop_pct": 0.875, "interpolation": "bicubic"}), tmp_path / "model.pt2"
    assert main(["export", str(path), str(out), "--size", "12", "10"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 12 x 10 pixels, any batch; logits: difference ")
    about = dict.fromkeys(("model", "classes", "size", "mean", "std", "crop_pct", "interpolation"), "")
    loaded = torch.export.load(out, extra_files=about).module()
    x = torch.randn(5, 3, 12, 10)
    expected = load_model(path)[0](x)
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert json.loads(about["classes"]) == META.classes and json.loads(about["size"]) == [12, 10]
    assert about["model"] == "s4nd_iso_tiny" and json.loads(about["mean"])[0] == 0.4914
    assert (about["crop_pct"], about["interpolation"]) == ("0.875", "bicubic")


@onnx
@pytest.mark.parametrize(
    "model, size, opset, args",
    [
        ("s4nd_iso_tiny", None, 20, {}),
        ("conv_iso_tiny", (12, 10), None, {}),
        ("s4nd_convnext_tiny", (96, 72), None, CONVNEXT),
        (
            "s4nd_vit_tiny_patch16_224",
            (30, 40),
            None,
            dict(embed_dim=16, depth=1, num_heads=2, patch_size=8, d_state=8),
        ),
    ],
)
def test_onnx_file_computes_what_the_model_does_for_any_batch(model, size, opset, args, checkpoint, tmp_path):
    import onnxruntime
    from onnx import load

    path, out = checkpoint(model, 64 if args else 8, **args), tmp_path / "model.onnx"
    done = export_model(path, out, size, opset)
    size = size or (8, 8)
    assert (done.path, done.size) == (out, size) and done.difference < 1e-5
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = torch.randn(batch, 3, *size)
        expected = load_model(path)[0](x).detach()
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        scale = expected.abs().max().item()
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-5 * scale)
    assert session.get_inputs()[0].shape == ["batch", 3, *size]
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == META.classes and json.loads(about["size"]) == list(size)
    assert about["model"] == model and len(json.loads(about["std"])) == 3
    if opset:
        assert [o.version for o in load(out).opset_import if not o.domain] == [opset]


def assert_computes_the_same(found, model, x):
    expected = model(x).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@onnx
@pytest.mark.parametrize(
    "model, args, frames",
    [
        ("s4nd_convnext3d_micro", dict(SMALL_S4ND, causal=True, num_frames=0), 6),
        ("s4nd_convnext3d_tiny", dict(d_state=4, in_chans=1), 3),
        ("convnext_i3d_tiny", {}, None),
        ("convnext_s3d_tiny", {}, 6),
    ],
)
def test_video_model_is_exported_as_a_function_of_clips_for_any_batch(model, args, frames, checkpoint, tmp_path):
    import onnxruntime

    path, out = checkpoint(model, 32, VIDEO, **VIDEO_NET, **args), tmp_path / "model.onnx"
    done = export_model(path, out, (40, 64), frames=frames)
    frames, channels, own = frames or 4, args.get("in_chans", 3), load_model(path)[0]
    assert (done.size, done.frames) == ((40, 64), frames) and done.difference < 1e-5
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", channels, frames, 40, 64]
    x = torch.randn(1, channels, frames, 40, 64)  # it was traced with a batch of two
    assert_computes_the_same(torch.from_numpy(session.run(["logits"], {"clips": x.numpy()})[0]), own, x)
    about = session.get_modelmeta().custom_metadata_map
    given = {key: json.loads(about[key]) for key in ("size", "frames", "seconds", "gamma")}
    assert given == {"size": [40, 64], "frames": frames, "seconds": 1.5, "gamma": 0.5} and about["motion"] == "moving"


@pytest.mark.parametrize(
    "model, options, frames", [("s4nd_convnext3d_micro", ["--frames", "7"], 7), ("convnext_s3d_tiny", [], 4)]
)
def test_pt2_file_of_a_video_model_takes_clips_of_the_frames_asked_for(
    model, options, frames, checkpoint, tmp_path, capsys
):
    path = checkpoint(
        model, 32, dict(VIDEO, gamma=1.0, motion=None), **VIDEO_NET, **(SMALL_S4ND if "s4nd" in model else {})
    )
    out = tmp_path / "model.pt2"
    assert main(["export", str(path), str(out), *options]) == 0
    said = f"{out}: {frames} frames of 32 x 32 pixels, any batch; logits: difference "
    assert capsys.readouterr().out.startswith(said)
    about = dict.fromkeys(("frames", "seconds", "gamma", "motion"), "")
    keys = list(about)  # the others are filled in too
    loaded, x = torch.export.load(out, extra_files=about).module(), torch.randn(4, 3, frames, 32, 32)
    assert_computes_the_same(loaded(x), load_model(path)[0], x)
    assert [json.loads(about[key]) for key in keys] == [frames, 1.5, 1.0, None]


def test_grey_image_model_is_exported_with_its_own_mean_and_std(checkpoint, tmp_path):
    path, out = checkpoint(embed_dim=8, depth=1, in_chans=1), tmp_path / "model.pt2"
    export_model(path, out)
    about, x = dict.fromkeys(("mean", "std"), ""), torch.randn(4, 1, 8, 8)
    assert_computes_the_same(torch.export.load(out, extra_files=about).module()(x), load_model(path)[0], x)
    assert [len(json.loads(about[key])) for key in ("mean", "std")] == [1, 1]


def test_frames_that_cannot_be_are_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="frames is for videos, and the model was trained on the images of photos"):
        export_model(checkpoint(), tmp_path / "model.pt2", frames=4)
    path = checkpoint("convnext_i3d_tiny", 32, VIDEO, **VIDEO_NET)
    with pytest.raises(ValueError, match="frames must be a positive number, got 0"):
        export_model(path, tmp_path / "model.pt2", frames=0)
    with pytest.raises(ValueError, match="convnext_i3d_tiny does not run at 1 frames of 32 x 32 pixels: "):
        export_model(path, tmp_path / "model.pt2", frames=1)


def test_file_that_computes_something_else_is_an_error(checkpoint, tmp_path, monkeypatch):
    path = checkpoint()
    other = torch.export.export(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)), (torch.zeros(3, 3, 8, 8),)
    )
    monkeypatch.setattr(torch.export, "load", lambda _: other)
    with pytest.raises(ValueError, match=r"model\.pt2: its output differs from the model's by .*: do not use it"):
        export_model(path, tmp_path / "model.pt2")


@pytest.mark.parametrize(
    "out, options, message",
    [
        ("model.pb", [], r"must end in .onnx or .pt2, got .*model\.pb"),
        ("nowhere/model.pt2", [], r"no folder .*nowhere for model\.pt2"),
        ("model.pt2", ["--opset", "18"], r"opset is for \.onnx"),
        ("model.pt2", ["--size", "0"], r"size must be one positive number or height and width, got \[0\]"),
        ("model.pt2", ["--size", "8", "8", "8"], r"height and width, got \[8, 8, 8\]"),
    ],
)
def test_mistake_is_one_line_and_leaves_no_file(out, options, message, checkpoint, tmp_path, capsys):
    assert main(["export", str(checkpoint()), str(tmp_path / out), *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("s4nd: error: ") and err.count("\n") == 1 and re.search(message, err)
    assert not (tmp_path / out).exists()


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    torch.save({}, tmp_path / "x.pt")
    for name, message in (("x.pt", "refused: a pickle can run code"), ("none.safetensors", "no checkpoint")):
        assert main(["export", str(tmp_path / name), str(tmp_path / "model.pt2")]) == 2
        assert message in capsys.readouterr().err


def test_size_below_the_models_least_is_refused_with_both_sizes(checkpoint, tmp_path):
    path = checkpoint("s4nd_convnext_tiny", 64, **CONVNEXT)
    with pytest.raises(ValueError, match=r"s4nd_convnext_tiny does not run at 16 x 64 pixels: "):
        export_model(path, tmp_path / "model.pt2", (16, 64))


def test_missing_onnx_package_is_named_with_the_extra(checkpoint, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "s4nd.train.commands.export.find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    with pytest.raises(ImportError, match=r"needs .*onnxscript: pip install 's4nd\[onnx\]'"):
        export_model(checkpoint(), tmp_path / "model.onnx")


@onnx
def test_opset_that_the_exporter_cannot_give_is_refused(checkpoint, tmp_path):
    for opset in (5, 99):
        with pytest.raises(ValueError, match=rf"opset .*{opset}"):
            export_model(checkpoint(), tmp_path / "model.onnx", opset=opset)


@onnx
def test_without_onnxruntime_the_file_is_written_and_said_to_be_unchecked(checkpoint, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "s4nd.train.commands.export.find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    assert main(["export", str(checkpoint()), str(tmp_path / "model.onnx")]) == 0
    assert "not checked: pip install 's4nd[onnx]'" in capsys.readouterr().out
    assert (tmp_path / "model.onnx").is_file()
