"""Weights meet data by the names of their classes: runs of the same numbers and other names are refused or brought in order."""

import logging
import shutil

import pytest
import torch

from s4nd.train.checkpoint import load_model, read_checkpoint
from s4nd.train.cli import main
from s4nd.train.config import load_config
from s4nd.train.data import build_dataset
from s4nd.train.data.names import difference, order_by_name
from s4nd.train.engine import Trainer, train


@pytest.fixture
def config(write_config):
    path = write_config("s4nd_iso_tiny", d_state=4)
    return lambda *overrides: load_config(path, ["stages.0.epochs=1", *overrides])


@pytest.fixture
def renamed(folder, tmp_path):
    """renamed({old: new}) -> a copy of the data with other class names."""

    def renamed(names):
        root = tmp_path / "-".join(names.values())
        for split in ("train", "test"):
            for name in ("rows", "columns"):
                shutil.copytree(folder / split / name, root / split / names.get(name, name))
        return root

    return renamed


def edit_state(path, edit):
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)


def test_run_continues_where_the_data_has_moved(config, renamed):
    folder = train(config())
    train(config("resume=auto", "stages.0.epochs=2", f"data.root={renamed({})}"))
    assert read_checkpoint(folder / "last.safetensors")[2].epoch == 2


@pytest.mark.parametrize(
    "names, message",
    [
        ({"rows": "waves"}, r"only in the run: rows; only in the data: waves"),
        ({"rows": "x", "columns": "y"}, r"only in the run: columns, rows; only in the data: x, y"),
    ],
)
def test_resume_on_classes_of_other_names_is_refused(config, renamed, names, message):
    folder = train(config())
    before = {path.name: path.read_bytes() for path in folder.glob("last.*")}
    with pytest.raises(ValueError, match=rf"the run to resume has other classes than the data: {message}$"):
        train(config("resume=auto", "stages.0.epochs=2", f"data.root={renamed(names)}"))
    assert {path.name: path.read_bytes() for path in folder.glob("last.*")} == before


def test_resume_from_another_directory_compares_too(config, renamed, tmp_path):
    folder = train(config())
    with pytest.raises(ValueError, match=r"only in the run: rows; only in the data: waves"):
        train(config(f"resume={folder}", f"out={tmp_path / 'other'}", f"data.root={renamed({'rows': 'waves'})}"))


def test_state_in_another_order_is_refused(config):
    folder = train(config())
    edit_state(folder / "last.state", lambda state: state["classes"].reverse())
    with pytest.raises(ValueError, match=r"another order: number 0 is rows in the run, columns in the data"):
        train(config("resume=auto", "stages.0.epochs=2"))


def test_state_of_an_older_version_continues_with_a_warning(config, caplog):
    folder = train(config())
    edit_state(folder / "last.state", lambda state: state.pop("classes"))
    with caplog.at_level(logging.WARNING, "s4nd"):
        train(config("resume=auto", "stages.0.epochs=2"))
    assert [record.name for record in caplog.records] == ["s4nd"] and "did not keep the names" in caplog.text
    assert torch.load(folder / "last.state", weights_only=True)["classes"] == ["columns", "rows"]


def test_run_begins_with_a_classifier_by_name_through_the_whole_trainer(config, renamed, tmp_path, capsys):
    """In the other data "a" is what was "rows": the second class becomes the first."""
    first = train(config(f"out={tmp_path / 'first'}")) / "last.safetensors"
    run = config(f"init.weights={first}", f"data.root={renamed({'rows': 'a'})}", "seed=3")
    trainer = Trainer(run, torch.device("cpu"))
    drawn = trainer.learner.model.state_dict()["head.fc.weight"].clone()
    trainer.learner.initialise()
    assert torch.equal(trainer.learner.model.state_dict()["head.fc.weight"], drawn)
    assert "only in the file: rows; only in the data: a; classifier as drawn" in capsys.readouterr().out


def evaluate(path, root, capsys):
    status = main(["eval", str(path), "--sizes", "8", "--root", str(root), "--device", "cpu"])
    return status, *capsys.readouterr()


def test_eval_brings_the_same_classes_in_another_order_by_name(config, folder, capsys, monkeypatch):
    """The data counts its classes backwards; by number an accuracy p would become 1 - p."""
    path = train(config("stages.0.epochs=8")) / "last.safetensors"
    accuracy = load_model(path)[2].accuracy
    assert accuracy > 0.6

    def backwards(*args, **options):
        data = build_dataset(*args, **options)
        data.classes, data.labels = data.classes[::-1], 1 - data.labels
        read = type(data).__getitem__
        monkeypatch.setattr(type(data), "__getitem__", lambda self, i: (read(self, i)[0], int(self.labels[i])))
        return data

    monkeypatch.setattr("s4nd.train.commands.compare.build_dataset", backwards)
    status, out, _ = evaluate(path, folder, capsys)
    assert status == 0 and f"{100 * accuracy:.1f} % at 8 (trained)" in out


def test_eval_on_as_many_classes_of_other_names_is_refused(config, renamed, capsys):
    path = train(config()) / "last.safetensors"
    status, _, err = evaluate(path, renamed({"rows": "waves"}), capsys)
    assert status == 2 and "only in the checkpoint: rows; only in the data: waves" in err


def test_trainer_refuses_test_data_of_other_classes(config, monkeypatch):
    def build(name, root, split, **options):
        data = build_dataset(name, root, split, **options)
        data.classes = data.classes if split == "train" else ["columns", "waves"]
        return data

    monkeypatch.setattr("s4nd.train.splits.build_dataset", build)
    with pytest.raises(
        ValueError, match=r"the same classes: only in the training data: rows; only in the test data: waves$"
    ):
        train(config())


def test_difference_is_short_and_names_what_differs():
    many = [f"class {i:04}" for i in range(1000)]
    assert difference(many, many, "a", "b") == ""
    assert difference(many, many[:-1], "a", "b") == "only in a: class 0999"
    assert len(difference(many, ["x"] * 1000, "a", "b")) < 200
    turned = [many[1], many[0], *many[2:]]
    assert difference(many, turned, "a", "b") == "another order: number 0 is class 0000 in a, class 0001 in b"
    assert difference(["x", "x"], ["x"], "a", "b") == "2 names in a, 1 in b, of which some are repeated"


def test_order_by_name_is_a_permutation_of_the_same_names():
    assert order_by_name(["b", "c", "a"], ["a", "b", "c"]) == [1, 2, 0]
    assert order_by_name(["a", "a"], ["a", "a"]) == [0, 1]  # the same list
    for wanted, found in (
        (["a", "b"], ["a", "c"]),
        (["a"], ["a", "b"]),
        (["a", "a", "b"], ["b", "a", "a"]),
        (["a", "b"], ["a", "a"]),
    ):
        assert order_by_name(wanted, found) is None and order_by_name(found, wanted) is None
