"""Models of one channel against the luma of the pixels (ITU-R BT.601, written out here), and what is refused."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import resolve_data_config

from s4nd.train.checkpoint import load_model
from s4nd.train.cli import main
from s4nd.train.config import load_config
from s4nd.train.data import build_dataset, make_loader
from s4nd.train.engine import Trainer, train
from s4nd.train.evaluate import evaluate
from s4nd.train.model import build_model, normalisation, to_input

CPU = torch.device("cpu")
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16], "d_state": 4}
MODELS = {
    "s4nd_iso_tiny": {"embed_dim": 8, "depth": 1},
    "conv_iso_tiny": {"embed_dim": 8, "depth": 1},
    "s4nd_convnext_tiny": CONVNEXT,
    "s4nd_convnext_micro": CONVNEXT,  # an S4ND stem
    "s4nd_vit_tiny_patch16_224": {"embed_dim": 16, "depth": 1, "d_state": 4},
    "resnet18": {},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16]},
}


@pytest.fixture
def config(folder, tmp_path):
    """config(model, *overrides), of one channel."""

    def config(name="conv_iso_tiny", *overrides):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"data: {{name: folder, root: {folder}}}\nstages: [{{size: 32, epochs: 1}}]\n")
        args = [f"model.args.{key}={value}" for key, value in MODELS.get(name, {}).items()]
        settings = ["batch_size=24", "device=cpu", f"out={tmp_path / 'run'}", "model.args.in_chans=1"]
        return load_config(path, [f"model.name={name}", *args, *settings, *overrides])

    return config


@pytest.mark.parametrize("name", MODELS)
def test_grey_model_trains_and_is_evaluated_on_luma(config, name):
    run = config(name)
    model, _, meta = load_model(train(run) / "last.safetensors")
    test = build_dataset("folder", run.data.root, "test")
    score = evaluate(model, make_loader(test, 32, 10, train=False), CPU)
    assert score.accuracy == meta.accuracy
    images = torch.cat([images for images, _ in make_loader(test, 32, 10, train=False)])
    red, green, blue = images.long().unbind(1)
    luma = ((299 * red + 587 * green + 114 * blue + 500) // 1000)[:, None]
    mean, std = ((0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]) for x in colour(name))
    with torch.no_grad():
        answers = model((luma / 255 - mean) / std).argmax(-1).numpy()
    assert (answers == test.labels).mean() == pytest.approx(meta.accuracy)


def colour(name):
    """Mean and std that timm gives for colour."""
    cfg = timm.get_pretrained_cfg(name)
    return cfg.mean, cfg.std


@pytest.mark.parametrize("name", MODELS)
def test_channels_are_normalised_by_the_luma_of_timms_constants(config, name):
    for model in (build_model(config(name), 2), timm.create_model(name, in_chans=1, **MODELS[name])):
        images = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 1, 1, 3).expand(1, 3, 1, 3)
        mean, std = ((0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]) for x in colour(name))
        expected = (torch.tensor([0, 1, 0.2]) - mean) / std
        torch.testing.assert_close(to_input(images, model, CPU)[0, 0, 0], expected, rtol=0, atol=1e-5)


def test_model_of_a_run_says_mean_and_std_of_its_own_channels(config):
    grey, coloured = build_model(config(), 2), build_model(config("conv_iso_tiny", "model.args.in_chans=3"), 2)
    data = resolve_data_config(model=grey)
    assert (len(data["mean"]), len(data["std"])) == (1, 1) and (data["mean"], data["std"]) == normalisation(grey)
    assert normalisation(coloured) == colour("conv_iso_tiny")


def test_clips_are_made_grey_like_their_frames():
    clips = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    model = timm.create_model("conv_iso_tiny", in_chans=1)
    by_frame = [to_input(frame, model, CPU) for frame in clips.unbind(2)]
    assert to_input(clips, model, CPU).shape == (2, 1, 4, 5, 6)
    assert torch.equal(to_input(clips, model, CPU), torch.stack(by_frame, 2))


def test_images_are_left_as_they_are():
    """A loader may hand out what a data set keeps."""
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    before = images.clone()
    for channels in (1, 3):
        to_input(images, timm.create_model("conv_iso_tiny", in_chans=channels), CPU)
        assert torch.equal(images, before)


def test_training_step_sees_luma(config, monkeypatch):
    trainer = Trainer(config(), CPU)
    trainer.enter(0)
    seen = []
    trainer.learner.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    trainer.train_step(images, torch.tensor([0, 1, 0, 1]))
    assert torch.equal(seen[0], to_input(images, trainer.learner.model, CPU)) and seen[0].shape == (4, 1, 32, 32)


def test_eval_of_a_grey_model_gives_the_accuracy_of_its_training(config, capsys):
    folder = train(config("s4nd_iso_tiny"))
    assert main(["eval", str(folder / "last.safetensors"), "--sizes", "32", "--device", "cpu"]) == 0
    accuracy = load_model(folder / "last.safetensors")[2].accuracy
    assert f"{100 * accuracy:.1f} % at 32 (trained)" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["2", "4", "0", "-1", "'3'", "3.0", "true", "null", "[3]"])
def test_other_numbers_of_channels_are_refused_before_anything_is_read(config, value):
    with pytest.raises(ValueError, match=r"model\.args\.in_chans must be 3, for colour, or 1, for the luma .*, got "):
        config("conv_iso_tiny", f"model.args.in_chans={value}", "data.root=nowhere")


def test_grey_file_and_its_colour_copy_are_one_input(tmp_path):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        grey.save(tmp_path / split / "a" / "0.png")
        grey.convert("RGB").save(tmp_path / split / "a" / "1.png")
    first, second = (image for image, _ in build_dataset("folder", tmp_path, "test"))
    model = timm.create_model("conv_iso_tiny", in_chans=1)
    inputs = [to_input(image[None], model, CPU) for image in (first, second)]
    assert torch.equal(*inputs)
    mean, std = normalisation(model)
    levels = inputs[0][0, 0].double() * std[0] + mean[0]
    assert torch.equal((levels * 255).round().long(), torch.arange(256).reshape(16, 16))
