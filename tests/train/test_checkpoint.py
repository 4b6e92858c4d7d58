"""Checkpoints against what a file may hold instead: a pickle, half a file, another model, a forged config."""

import json
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from s4nd.train.checkpoint import Meta, load_model, read_checkpoint, save_checkpoint
from s4nd.train.config import config_to_dict, load_config
from s4nd.train.model import build_model

META = Meta(epoch=1, stage=0, accuracy=0.5, classes=["a", "b"], weights="model")


@pytest.fixture
def config(write_config):
    return load_config(write_config())


@pytest.fixture
def saved(config, tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, build_model(config, 2).state_dict(), config, META)
    return path


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was loaded",))


def test_round_trip_keeps_weights_config_and_meta(saved, config):
    model, loaded_config, meta = load_model(saved)
    tensors, *_ = read_checkpoint(saved)
    assert loaded_config == config and meta == META and not model.training
    assert all(torch.equal(tensors[key], value) for key, value in model.state_dict().items())


def test_timm_reads_it(saved, config):
    model = timm.create_model(
        config.model.name, num_classes=2, img_size=8, **config.model.args, checkpoint_path=str(saved)
    )
    assert torch.equal(model.stem.weight, load_model(saved)[0].stem.weight)


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.ckpt", "x.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_is_refused_and_never_loaded(tmp_path, name, zipped):
    path = tmp_path / name
    torch.save(Bomb(), path) if zipped else path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="refused: a pickle can run code"):
        load_model(path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file_is_an_error(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x.safetensors: damaged, or no safetensors file"):
        load_model(saved)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_model(tmp_path / "none.safetensors")


def test_weights_without_config_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not a checkpoint of `s4nd train`"):
        load_model(tmp_path / "x.safetensors")


def test_weights_of_another_model_list_the_keys(tmp_path, config):
    weights = build_model(config, 2).state_dict()
    weights["more"] = weights.pop("stem.bias")
    weights["stem.weight"] = torch.zeros(3)
    save_checkpoint(tmp_path / "x.safetensors", weights, config, META)
    message = r"1 missing: stem.bias; 1 unexpected: more; 1 of another shape: stem.weight \(3,\) for \(8, 3, 1, 1\)"
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "x.safetensors")


def test_long_lists_of_keys_are_shortened(tmp_path, config):
    one = {"head.fc.bias": torch.zeros(10)}  # safetensors 0.4.3 does not read a file of none
    save_checkpoint(tmp_path / "x.safetensors", one, config, META)
    with pytest.raises(ValueError, match=r"missing: [^,]+, [^,]+, [^,]+, [^,]+, and \d+ more"):
        load_model(tmp_path / "x.safetensors")


def forge(path, **changes):
    """A checkpoint whose metadata differ from a good one's by `changes`."""
    tensors, config, meta = read_checkpoint(path)
    about = {"format_version": 1, "config": config_to_dict(config), **vars(meta), **changes}
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in about.items()})


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"format_version": 99}, ValueError, "format version 99"),
        ({"config": {"stages": [{"size": 8}], "nonsense": 1}}, KeyError, "nonsense is unknown"),
        ({"config": None}, ValueError, "must be a mapping"),
        (
            {"config": {"stages": [{}], "model": {"name": "hf-hub:some/model"}}},
            ValueError,
            "not a model of timm's registry",
        ),
        ({"config": {"stages": [{}], "model": {"args": {"checkpoint_path": "x.pth"}}}}, ValueError, "cannot be set"),
        ({"config": {"stages": [{}], "model": {"name": "conv_iso_tini"}}}, ValueError, "did you mean conv_iso_tiny"),
        ({"config": {"stages": [{}], "model": {"args": {"depht": 2}}}}, ValueError, "does not take model.args"),
        ({"stage": 7}, ValueError, "stage 7 of a config with 1 stages"),
        ({"accuracy": "high"}, ValueError, "accuracy is 'high'"),
        ({"classes": [2]}, ValueError, "classes must be names"),
        ({"classes": 2}, ValueError, "classes is 2"),
    ],
)
def test_forged_metadata_are_refused(saved, changes, error, message):
    forge(saved, **changes)
    with pytest.raises(error, match=message):
        load_model(saved)


def test_interrupted_write_leaves_the_old_file(saved, config, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(saved, build_model(config, 2).state_dict(), config, META)
    assert saved.read_bytes() == before
