"""The command `s4nd convert` on checkpoints made from golden weights, as torch, Lightning and safetensors save them."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models import load_checkpoint

from s4nd.models.reference_weights import convert_reference
from s4nd.train.cli import main
from s4nd.train.commands.convert import convert_checkpoint, read_reference
from tests.reference import video_state

GOLDEN = Path(__file__).parents[1] / "golden"
NAME = "s4nd_iso_base"
ARGS = ["img_size=8", "embed_dim=16", "depth=2", "d_state=8"]
REFERENCE = dict(align="edge", resample="continuous")
MODEL = dict(img_size=8, embed_dim=16, depth=2, d_state=8, **REFERENCE)


def golden_state(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return {key[6:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("state/")}


@pytest.fixture
def state():
    return golden_state("iso2d_s4nd")


@pytest.fixture
def run(capsys):
    def run(*args):
        status = main(["convert", *(str(arg) for arg in args)])
        return status, *capsys.readouterr()

    return run


SAVED = {
    "x.pt": torch.save,
    "x.pth": lambda state, path: torch.save({"state_dict": state, "epoch": 3, "optimizer_states": [{"lr": 0.1}]}, path),
    "x.ckpt": lambda state, path: torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False),
    "x.safetensors": save_file,
}


@pytest.mark.parametrize("name", SAVED)
def test_timm_loads_what_convert_writes(run, state, tmp_path, name):
    """And nothing is lost in the file; tests/models/test_reference_weights.py compares logits."""
    SAVED[name](state, tmp_path / name)
    out = tmp_path / "ours.safetensors"
    status, said, err = run(tmp_path / name, out, "--model", NAME, "--arg", *ARGS)
    assert (status, err) == (0, "")
    assert (
        f"timm.create_model('{NAME}', align='edge', resample='continuous', img_size=8, embed_dim=16, depth=2, d_state=8, "
        "checkpoint_path=" in said
    )
    model, again = timm.create_model(NAME, **MODEL, checkpoint_path=str(out)), timm.create_model(NAME, **MODEL)
    load_checkpoint(again, str(out), strict=True)
    expected = convert_reference(state, model)
    for loaded in (model.state_dict(), again.state_dict()):
        assert all(torch.equal(value, expected[key]) for key, value in loaded.items())


def test_metadata_says_how_to_build_the_model(state, tmp_path):
    save_file(state, tmp_path / "x.safetensors")
    done = convert_checkpoint(tmp_path / "x.safetensors", tmp_path / "ours.safetensors", NAME, ARGS)
    assert done.args == MODEL and done.unused == []
    with safe_open(done.path, framework="pt") as file:
        assert file.metadata()["model"] == NAME and '"align": "edge"' in file.metadata()["args"]


def test_baseline_gets_no_alignment(run, tmp_path):
    torch.save(golden_state("convnext2d_conv"), tmp_path / "x.pt")
    args = ["--arg", "depths=[1,1,1,1]", "--arg", "dims=[8,16,24,32]", "--arg", "num_classes=10"]
    status, said, _ = run(tmp_path / "x.pt", tmp_path / "ours.safetensors", "--model", "convnext_micro", *args)
    assert status == 0 and "align=" not in said


def test_unused_keys_are_named(run, tmp_path):
    torch.save(golden_state("convnext2d_s4nd_full"), tmp_path / "x.pt")
    args = ["depths=[1,1,1,1]", "dims=[8,16,24,32]", "num_classes=10", "stem_channels=8", "d_state=8", "img_size=64"]
    status, said, _ = run(
        tmp_path / "x.pt", tmp_path / "y.safetensors", "--model", "s4nd_convnext_micro", "--arg", *args
    )
    assert status == 0 and "the reference does not use them: stem.stem.D\n" in said


def test_video_network_with_an_s4nd_stem_is_converted(run, tmp_path):
    args = dict(img_size=32, num_frames=4, depths=[1, 1, 1, 1], dims=[8, 16, 24, 32], num_classes=10, d_state=8)
    torch.manual_seed(0)
    source = timm.create_model("s4nd_convnext3d_micro", **args, **REFERENCE).eval()
    torch.save(video_state(source) | {"stem.stem.0.D": torch.randn(1, 3)}, tmp_path / "x.pt")
    given = [f"{key}={value}".replace(" ", "") for key, value in args.items()]
    out = tmp_path / "y.safetensors"
    status, said, err = run(tmp_path / "x.pt", out, "--model", "s4nd_convnext3d_micro", "--arg", *given)
    assert (status, err) == (0, "") and "the reference does not use them: stem.stem.0.D\n" in said
    model = timm.create_model("s4nd_convnext3d_micro", **args, **REFERENCE, checkpoint_path=str(out)).eval()
    x = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(model(x), source(x))


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was loaded",))


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.pth", "x.bin"])
@pytest.mark.parametrize("save", [torch.save, lambda tree, path: path.write_bytes(pickle.dumps(tree, 2))])
def test_pickled_objects_are_refused_and_never_loaded(tmp_path, state, name, save):
    save({"state_dict": state, "hyper_parameters": Bomb()}, tmp_path / name)
    with pytest.raises(ValueError, match=r"refused: .* save its state dict alone where it comes from: torch\.save"):
        read_reference(tmp_path / name)


def test_refusal_names_the_objects(tmp_path, state):
    torch.save({"state_dict": state, "hyper_parameters": SimpleNamespace(lr=1)}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"\(types\.SimpleNamespace\)"):
        read_reference(tmp_path / "x.ckpt")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 4, 100, 3000, -1, -1000])
def test_truncated_file_is_an_error(tmp_path, state, name, keep):
    path = tmp_path / name
    SAVED[name](state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x\.\w+: (damaged|refused: damaged)"):
        read_reference(path)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (torch.zeros(2), "holds no state dict"),
        ({}, "holds no state dict"),
        ({"state_dict": [1]}, "holds no state dict"),
        ({"epoch": 1, "model": {"a": torch.zeros(1)}}, "got others under epoch, model"),
        ({1: torch.zeros(1)}, "got others under 1"),
    ],
)
def test_file_without_a_state_dict_is_an_error(tmp_path, tree, message):
    torch.save(tree, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"x.pt: .*{message}"):
        read_reference(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("out", "model", "args", "message"),
    [
        ("y.pt", NAME, ARGS, "must be named *.safetensors"),
        ("y.safetensors", "s4nd_iso_bas", ARGS, "not a model of timm's registry"),
        ("y.safetensors", "hf-hub:some/model", ARGS, "not a model of timm's registry"),
        ("y.safetensors", "resnet18", [], "need a ConvNeXt"),
        ("y.safetensors", NAME, ["depth"], "must be key=value, got 'depth'"),
        ("y.safetensors", NAME, ["depth=[1"], "not valid YAML"),
        ("y.safetensors", NAME, ["depht=2"], "does not take"),
        ("y.safetensors", NAME, ["pretrained=true"], "pretrained cannot be set"),
        ("y.safetensors", NAME, ["checkpoint_path=z.pth"], "checkpoint_path cannot be set"),
        ("y.safetensors", NAME, [*ARGS, "align=centre"], "build the model with align='edge'"),
        ("y.safetensors", NAME, [*ARGS, "depth=3"], "missing: blocks.2"),
        ("y.safetensors", NAME, [*ARGS, "embed_dim=8"], "of another shape: stem.weight (16, 3) for (8, 3, 1, 1)"),
    ],
)
def test_mistake_is_one_line_and_status_2_and_writes_nothing(run, state, tmp_path, out, model, args, message):
    torch.save(state, tmp_path / "x.pt")
    status, _, err = run(tmp_path / "x.pt", tmp_path / out, "--model", model, *(["--arg", *args] if args else []))
    assert status == 2 and err.startswith("s4nd: error: ") and err.count("\n") == 1
    assert message in err and not (tmp_path / out).exists()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_reference(tmp_path / "none.pt")
