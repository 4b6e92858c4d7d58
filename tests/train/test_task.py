"""Tasks against torch's losses and counting by hand, and a multi-label run from training to export."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from s4nd.train.checkpoint import Meta, load_model, read_checkpoint, save_checkpoint
from s4nd.train.cli import main
from s4nd.train.config import load_config
from s4nd.train.data import build_dataset, make_loader
from s4nd.train.engine import Trainer, train
from s4nd.train.evaluate import evaluate
from s4nd.train.initial import initialise
from s4nd.train.model import build_model, to_input
from s4nd.train.task import TASKS, agreement, task_of

CPU = torch.device("cpu")
SINGLE, MULTI = TASKS["single-label"], TASKS["multi-label"]
NAMES = ["red", "green", "blue"]


@pytest.fixture
def config(write_config, coloured):
    """config(*overrides) -> of the coloured images, whose attributes a network of convolutions sees."""
    path = write_config()
    return lambda *overrides: load_config(
        path, ["data.name=csv", f"data.root={coloured}", "data.hflip=false", *overrides]
    )


@pytest.fixture
def trained(config):
    """The checkpoint of a run that has learnt something."""
    return train(config("stages.0.epochs=20", "batch_size=4")) / "last.safetensors"


def logits_and_labels(seed=0, count=5, attributes=3):
    generator = torch.Generator().manual_seed(seed)
    return (
        3 * torch.randn(count, attributes, generator=generator),
        torch.randint(0, 2, (count, attributes), generator=generator),
    )


# ---- what a task is


def test_labels_of_the_data_say_which_task_it_is(coloured, folder):
    assert task_of(build_dataset("csv", coloured, "train").labels) is MULTI
    assert task_of(build_dataset("folder", folder, "train").labels) is SINGLE


def test_loss_of_attributes_is_the_mean_binary_cross_entropy():
    logits, labels = logits_and_labels()
    p = logits.sigmoid()
    by_hand = -torch.where(labels == 1, p, 1 - p).log()
    torch.testing.assert_close(MULTI.criterion()(logits, labels), by_hand.mean())
    torch.testing.assert_close(MULTI.criterion(reduction="sum")(logits, labels), by_hand.sum())
    assert torch.equal(MULTI.criterion()(logits, labels), F.binary_cross_entropy_with_logits(logits, labels.float()))


def test_smoothing_of_an_attribute_is_that_of_two_classes():
    logits, labels = logits_and_labels()
    pairs = torch.stack([torch.zeros_like(logits), logits], 1)  # the softmax of (0, x) is the sigmoid of x
    expected = F.cross_entropy(pairs, labels, label_smoothing=0.3)
    torch.testing.assert_close(MULTI.criterion(label_smoothing=0.3)(logits, labels), expected)


def test_loss_of_classes_is_the_cross_entropy():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.2)
    assert torch.equal(SINGLE.criterion(label_smoothing=0.2)(logits, labels), expected)


def test_attribute_is_right_on_its_side_of_one_half():
    logits, labels = torch.tensor([[0.2, -0.1], [-3.0, 0.4]]), torch.tensor([[1, 1], [0, 0]])
    assert MULTI.right(logits, labels).tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize(
    "task, labels", [(SINGLE, torch.ones(2, 2)), (MULTI, torch.ones(2)), (MULTI, torch.ones(2, 1))]
)
def test_labels_of_another_task_are_refused(task, labels):
    with pytest.raises(ValueError, match="the labels are of another task"):
        task.right(torch.ones(2, 2), labels.long())


@pytest.mark.parametrize("task, probabilities", [(SINGLE, lambda x: x.softmax(-1)), (MULTI, torch.sigmoid)])
def test_probabilities_of_a_video_are_the_means_over_its_clips(task, probabilities):
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(probabilities(task.over_clips(logits)), probabilities(logits).mean(0, keepdim=True))


def test_majority_is_the_more_frequent_value_of_each_attribute():
    labels = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=np.uint8)
    assert MULTI.majority(labels) == [1, 0, 0, 0]  # as often one as the other: 0
    assert agreement([1, 0, 0, 0], labels) == (3 + 3 + 4 + 2) / 16
    assert MULTI.majority(np.ones((300, 1), dtype=np.uint8)) == [1]  # more than a uint8 counts


def test_score_is_the_mean_over_images_and_attributes(coloured):
    """Of the 8 test images every combination is there: a model that sees red alone is right on it, and half of the others."""

    class SeesRed(torch.nn.Module):
        pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "input_size": (3, 12, 12)}  # noqa: RUF012

        def forward(self, x):
            red = x[:, :1].mean((2, 3)) - 120 / 255
            return torch.cat([red, torch.ones_like(red), -torch.ones_like(red)], 1)

    data = build_dataset("csv", coloured, "test")
    score = evaluate(SeesRed(), make_loader(data, 12, 3, train=False), CPU, task=MULTI)
    assert score.images == 8 and score.accuracy == pytest.approx((1 + 0.5 + 0.5) / 3, rel=1e-15)
    images = torch.stack([data[i][0] for i in range(8)])
    logits = SeesRed()(to_input(images, SeesRed(), CPU))
    expected = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(data.labels).float())
    assert score.loss == pytest.approx(expected.item(), rel=1e-6)


# ---- training


def step(run):
    """The loss of a step on the first batch, and the logits and targets that it is of."""
    run.enter(0)
    images, labels = next(iter(run.feed.training(0)))
    seen = {}
    run.learner.criterion.register_forward_hook(
        lambda _, args, __: seen.update(logits=args[0].detach(), targets=args[1])
    )
    run.learner.model.train()
    run.train_step(images, labels)
    return run.learner.steps().loss.item(), labels, seen["logits"], seen["targets"]


def test_step_trains_on_the_binary_cross_entropy(config):
    loss, labels, logits, targets = step(Trainer(config(), CPU))
    assert labels.shape == logits.shape == (16, 3) and torch.equal(labels, targets)
    assert loss == pytest.approx(F.binary_cross_entropy_with_logits(logits, labels.float()).item(), rel=1e-6)


@pytest.mark.parametrize("mixing", ["mixup=1.0", "cutmix=1.0"])
def test_mixed_images_have_the_mixed_attributes_of_both(mixing, config):
    loss, labels, logits, targets = step(Trainer(config(mixing), CPU))
    one, other = labels.float(), labels.flip(0).float()
    place = tuple((one != other).nonzero()[0])
    share = ((targets - other)[place] / (one - other)[place]).item()
    assert 0.01 < share < 0.99
    torch.testing.assert_close(targets, share * one + (1 - share) * other)
    assert loss == pytest.approx(F.binary_cross_entropy_with_logits(logits, targets).item(), rel=1e-6)


def test_run_says_its_task_and_what_needs_no_image(config, capsys, tmp_path):
    """Of the training images 18, 12 and 3 of 24 have the attributes, of the test images half: the majority is right on half."""
    assert main(["train", str(tmp_path / "conv_iso_tiny.yaml"), *overrides_of(config()), "stages.0.epochs=1"]) == 0
    opening, epoch, best = capsys.readouterr().out.splitlines()
    assert opening == (
        "multi-label: mean accuracy over the attributes; the more frequent value of each in the training data gives 50.0 % of "
        "the test images"
    )
    assert re.search(r"  test \d+\.\d % \(majority 50\.0 %\)  lr ", epoch)
    assert re.search(r"best\.safetensors: mean accuracy over the attributes \d+\.\d % of the test split", best)
    folder = tmp_path / "run" / "conv_iso_tiny"
    record = json.loads((folder / "log.jsonl").read_text())
    assert record["task"] == "multi-label" and record["majority"] == 0.5
    meta = read_checkpoint(folder / "last.safetensors")[2]
    assert (meta.task, meta.majority, meta.classes) == ("multi-label", [1, 0, 0], NAMES)
    assert meta.accuracy == record["test_accuracy"]


def overrides_of(config):
    return [f"data.name={config.data.name}", f"data.root={config.data.root}", "data.hflip=false"]


def test_majority_is_of_the_images_that_are_trained_on(config):
    run = Trainer(config("data.val_fraction=0.5"), CPU)
    assert run.majority == MULTI.majority(run.splits.train.labels) and len(run.splits.train) == 12
    assert run.splits.judge == "validation" and run.test().images == 12


def test_run_of_classes_says_nothing_of_a_majority(write_config, capsys):
    folder = train(load_config(write_config(), ["stages.0.epochs=1"]))
    assert "majority" not in capsys.readouterr().out + (folder / "log.jsonl").read_text()
    meta = read_checkpoint(folder / "last.safetensors")[2]
    assert (meta.task, meta.majority) == ("single-label", [])


def test_interrupted_run_ends_with_the_same_weights(config, tmp_path, monkeypatch):
    overrides = ["stages.0.epochs=3", "mixup=0.5", "label_smoothing=0.1"]
    whole = read_checkpoint(train(config(f"out={tmp_path / 'whole'}", *overrides)) / "last.safetensors")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        train_step = Trainer.train_step

        def interrupted(self, *batch):
            if self.step == 2:
                raise KeyboardInterrupt
            return train_step(self, *batch)

        patch.setattr(Trainer, "train_step", interrupted)
        train(config(*overrides))
    resumed = read_checkpoint(train(config("resume=auto", *overrides)) / "last.safetensors")
    assert resumed[2] == whole[2] and all(torch.equal(resumed[0][key], whole[0][key]) for key in whole[0])


# ---- weights meet data


def run_eval(capsys, *arguments):
    capsys.readouterr()
    status = main(["eval", *map(str, arguments), "--device", "cpu"])
    return status, *capsys.readouterr()


def test_eval_has_a_row_of_the_majority_and_names_the_metric(trained, capsys):
    accuracy = read_checkpoint(trained)[2].accuracy
    assert accuracy > 0.8
    status, out, _ = run_eval(capsys, trained, "--sizes", "8", "12")
    _, row, majority, metric, *_ = out.splitlines()
    assert status == 0 and row.split()[:2] == ["conv_iso_tiny", f"{100 * accuracy:.1f}*"]
    assert majority.split() == ["majority", "50.0", "50.0"]
    assert metric == "mean accuracy over the attributes in %, * trained at this size"


def test_majorities_that_differ_have_a_row_each(trained, tmp_path, capsys):
    tensors, config, meta = read_checkpoint(trained)
    other = tmp_path / "other" / "x.safetensors"
    other.parent.mkdir()
    save_checkpoint(other, tensors, config, replace(meta, majority=[0, 1, 1]))
    _, out, _ = run_eval(capsys, trained, other, "--sizes", "8", "--limit", "3")
    labels = build_dataset("csv", config.data.root, "test", limit=3).labels
    values = [100 * agreement(majority, labels) for majority in ([1, 0, 0], [0, 1, 1])]
    rows = [line for line in out.splitlines() if ", majority" in line]
    assert values[0] != values[1]  # of 9 answers one is right where the other is wrong
    assert [float(row.split()[-1]) for row in rows] == pytest.approx(values, abs=0.05)


def test_eval_brings_attributes_and_their_majority_in_order_by_name(trained, coloured, tmp_path, capsys):
    """The same images, of a list that counts its attributes backwards."""
    root = tmp_path / "backwards"
    shutil.copytree(coloured, root)
    for path in root.glob("*.csv"):
        rows = [line.split(",") for line in path.read_text().splitlines()]
        keep = (
            rows if path.stem == "train" else [row for row in rows if row[1] == "red" or row[3] == "0"]
        )  # none is blue
        path.write_text("\n".join(",".join([row[0], *row[:0:-1]]) for row in keep))
    same = [line.split() for line in run_eval(capsys, trained, "--sizes", "8")[1].splitlines()[1:3]]
    found = [line.split() for line in run_eval(capsys, trained, "--sizes", "8", "--root", root)[1].splitlines()[1:3]]
    assert found[1] == ["majority", "66.7"] and same[1] == ["majority", "50.0"]
    model, *_ = load_model(trained)
    data = build_dataset("csv", coloured, "test")
    without = [i for i in range(8) if not data.labels[i, 2]]
    images = next(iter(make_loader(data, 8, 8, train=False)))[0][without]
    with torch.no_grad():
        right = (model(to_input(images, model, CPU)) > 0) == torch.from_numpy(data.labels[without]).bool()
    assert found[0] == ["conv_iso_tiny", f"{100 * right.double().mean():.1f}*"]


def test_eval_refuses_data_of_another_task_and_of_other_attributes(trained, folder, coloured, tmp_path, capsys):
    status, _, err = run_eval(capsys, trained, "--sizes", "8", "--data", "folder", "--root", folder)
    assert status == 2 and "is multi-label, and the data of folder is single-label" in err
    shutil.copytree(coloured, tmp_path / "other")
    path = tmp_path / "other" / "test.csv"
    path.write_text(path.read_text().replace("green", "grey"))
    status, _, err = run_eval(capsys, trained, "--sizes", "8", "--root", tmp_path / "other")
    assert status == 2 and "only in the checkpoint: green; only in the data: grey" in err


def test_accuracies_of_two_tasks_do_not_stand_in_one_table(trained, write_config, tmp_path, capsys):
    other = train(load_config(write_config(), ["stages.0.epochs=1", f"out={tmp_path / 'single'}"])) / "last.safetensors"
    status, out, err = run_eval(capsys, trained, other, "--sizes", "8")
    assert status == 2 and "different tasks do not stand in one table" in err and "accuracy in %" not in out


def test_test_data_of_other_attributes_are_refused(config, coloured, tmp_path):
    shutil.copytree(coloured, tmp_path / "other")
    path = tmp_path / "other" / "test.csv"
    path.write_text(path.read_text().replace("file,red,green", "file,green,red"))
    with pytest.raises(
        ValueError, match=r"the same classes: another order: number 0 is red in the training data, green in"
    ):
        Trainer(config(f"data.root={tmp_path / 'other'}"), CPU)


@pytest.fixture
def classes(tmp_path):
    """Folders of classes with the names of the attributes."""
    for split in ("train", "test"):
        for i, name in enumerate(NAMES):
            (tmp_path / "classes" / split / name).mkdir(parents=True)
            image = np.full((12, 12, 3), 60 * i, dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "classes" / split / name / "0.png")
    return tmp_path / "classes"


def test_resume_on_data_of_another_task_is_refused(config):
    folder = train(config("stages.0.epochs=1"))
    state = torch.load(folder / "last.state", weights_only=True)
    assert state["task"] == "multi-label"
    del state["task"]  # as of a run of a version that knew one task only, of classes of these names
    torch.save(state, folder / "last.state")
    with pytest.raises(ValueError, match=r"^the run to resume is single-label, and the data is multi-label$"):
        train(config("resume=auto", "stages.0.epochs=2"))


@pytest.mark.parametrize("plain", [False, True])
def test_classifier_of_another_task_stays_as_drawn(plain, trained, config, classes, tmp_path):
    """Classes of the same names: a sigmoid's row says something else than a softmax's."""
    source = trained
    if plain:
        source = tmp_path / "plain.safetensors"
        metadata = {"classes": json.dumps(NAMES), "task": "multi-label"}
        save_file(read_checkpoint(trained)[0], source, metadata)
    run = config(f"init.weights={source}", "seed=3", "data.name=folder", f"data.root={classes}")
    trainer = Trainer(run, CPU)
    drawn = trainer.learner.model.head.fc.weight.clone()
    report = initialise(trainer.learner.model, run, NAMES, trainer.task.name)
    assert "; the file is multi-label and the data is single-label; classifier as drawn: head.fc.weight" in report
    assert torch.equal(trainer.learner.model.head.fc.weight, drawn)
    assert torch.equal(trainer.learner.model.stem.weight, read_checkpoint(trained)[0]["stem.weight"])


def test_classifier_of_attributes_is_taken_by_name(trained, config, coloured, tmp_path):
    run = config(f"init.weights={trained}", "seed=3")
    model = build_model(run, 3)
    report = initialise(model, run, ["blue", "red", "green"], "multi-label")
    assert report.endswith("rows of the classifier taken by name")
    assert torch.equal(model.head.fc.weight, read_checkpoint(trained)[0]["head.fc.weight"][[2, 0, 1]])


def test_run_begins_with_a_classifier_of_its_own_task(trained, config):
    trainer = Trainer(config(f"init.weights={trained}", "seed=3"), CPU)
    trainer.learner.initialise()
    assert torch.equal(trainer.learner.model.head.fc.weight, read_checkpoint(trained)[0]["head.fc.weight"])


def test_task_of_a_bare_file_must_be_one(trained, config, tmp_path):
    save_file(read_checkpoint(trained)[0], tmp_path / "plain.safetensors", {"task": "regression"})
    run = config(f"init.weights={tmp_path / 'plain.safetensors'}")
    with pytest.raises(
        ValueError, match="the metadata's task must be single-label or multi-label or restoration, got 'regression'"
    ):
        initialise(build_model(run, 3), run, NAMES, "multi-label")


# ---- what a checkpoint and an export say


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"task": "regression"}, "the task must be single-label or multi-label or restoration, got 'regression'"),
        ({"majority": [1]}, r"a multi-label majority must be 3 values of 0 and 1, got \[1\]"),
        ({"majority": [1, 0, 2]}, r"a multi-label majority must be 3 values of 0 and 1, got \[1, 0, 2\]"),
        ({"task": "single-label"}, r"a single-label majority must be 0 values"),
    ],
)
def test_checkpoint_with_another_task_or_majority_is_refused(changes, message, config, tmp_path):
    run = Trainer(config(), CPU)
    meta = replace(Meta(1, 0, 0.5, NAMES, "model", task="multi-label", majority=[1, 0, 0]), **changes)
    save_checkpoint(tmp_path / "x.safetensors", run.learner.model.state_dict(), run.config, meta)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("task", ["multi-label", "single-label"])
def test_export_says_the_task(task, trained, write_config, tmp_path):
    if task == "single-label":
        trained = (
            train(load_config(write_config(), ["stages.0.epochs=1", f"out={tmp_path / 'single'}"])) / "last.safetensors"
        )
    assert main(["export", str(trained), str(tmp_path / "model.pt2")]) == 0
    about = {"task": "", "classes": ""}
    loaded = torch.export.load(tmp_path / "model.pt2", extra_files=about).module()
    assert about["task"] == task
    x = torch.randn(4, 3, 8, 8)
    expected = load_model(trained)[0](x)
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_watch_refuses_a_multi_label_model(trained, tmp_path, capsys):
    assert main(["watch", str(trained), str(tmp_path / "video.mp4")]) == 2
    assert "watch shows the likeliest of several classes, and " in capsys.readouterr().err


def test_real_faces_are_trained_and_evaluated(shared, write_config, capsys):
    """A few of CelebA's, from its lists to the table."""
    root = shared / "data" / "celeba"
    limits = ["data.train_limit=48", "data.test_limit=20", "stages.0.epochs=1"]
    path = train(load_config(write_config(), ["data.name=celeba", f"data.root={root}", *limits])) / "last.safetensors"
    train_labels, test_labels = (build_dataset("celeba", root, *part).labels for part in (("train", 48), ("test", 20)))
    expected = ((train_labels.mean(0) > 0.5) == test_labels).mean()
    status, out, _ = run_eval(capsys, path, "--sizes", "8")
    rows = [line.split() for line in out.splitlines()]
    assert status == 0 and rows[2] == ["majority", f"{100 * expected:.1f}"]
    assert len(read_checkpoint(path)[2].classes) == 40
