"""Restoration against sums in float64 and images worked out by hand, and a run from training to export."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.transforms.v2 import functional as TF

from s4nd.train.checkpoint import load_model, read_checkpoint, save_checkpoint
from s4nd.train.cli import main
from s4nd.train.config import load_config
from s4nd.train.config.schema import ModelConfig
from s4nd.train.data import Rendering, build_dataset, make_loader
from s4nd.train.data.resized import render
from s4nd.train.engine import Trainer, train
from s4nd.train.evaluate import Score, evaluate
from s4nd.train.initial import initialise
from s4nd.train.model import build_model, to_input
from s4nd.train.resolution import Curve, conclusion, evaluate_sizes, plot_curves, table
from s4nd.train.task import PSNR, TASKS, Unchanged, task_of
from tests.train.test_engine import Killed, kill_at_step, states

CPU = torch.device("cpu")
TASK = TASKS["restoration"]
NOISE = 25


@pytest.fixture
def config(write_config):
    """config(*overrides, model=...) -> of noisy stripes."""

    def make(*overrides, model="conv_iso_tiny", **args):
        return load_config(write_config(model, **args), [f"data.noise={NOISE}", *overrides])

    return make


@pytest.fixture
def trained(config):
    """The checkpoint of a run that has learnt something."""
    return train(config("stages.0.epochs=12", "batch_size=4")) / "last.safetensors"


def noisy_images(folder, size, noise=NOISE):
    """Of the test images, (20, 3, size, size) each: clean and noisy ones, 0 to 1 in float64."""
    loader = make_loader(
        build_dataset("folder", folder, "test"), size, 20, train=False, rendering=Rendering(noise=noise)
    )
    ((images, residual),) = loader
    return (images + residual).double() / 255, images


def psnr(restored, clean):
    """Decibels, by hand: of each image, then the mean."""
    errors = [np.mean((a.double().numpy() - b.double().numpy()) ** 2) for a, b in zip(restored, clean, strict=True)]
    return float(np.mean([10 * math.log10(1 / error) for error in errors]))


# ---- what the task is


def test_noise_makes_it_the_task_whatever_the_labels_are(folder, coloured):
    for labels in (build_dataset("csv", coloured, "train").labels, build_dataset("folder", folder, "train").labels):
        assert task_of(labels, NOISE) is TASK and task_of(labels) is not TASK


def test_psnr_is_that_of_each_image_then_the_mean():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (4, 3, 5, 6), generator=generator)
    images = clean.clone()
    images[1:] = torch.randint(0, 256, (3, 3, 5, 6), generator=generator)
    output = torch.randn(4, 3, 5, 6, generator=generator) * torch.tensor([0.01, 0.1, 0.5, 2])[:, None, None, None]
    scores = TASK.scores(output, (clean - images).to(torch.int16))
    restored = images.double() / 255 + output.double()
    assert scores.shape == (4,) and scores.min() < 0 < 30 < scores.max()  # more than white's power, and hardly any
    assert scores.mean().item() == pytest.approx(psnr(restored, clean.double() / 255), rel=1e-12)


def test_loss_is_the_mean_squared_error_of_the_restored_image():
    output, targets = torch.randn(4, 3, 5, 6), torch.randint(-50, 50, (4, 3, 5, 6), dtype=torch.int16)
    expected = (output.double() - targets.double() / 255).square()
    torch.testing.assert_close(TASK.criterion()(output, targets), expected.mean().float())
    torch.testing.assert_close(TASK.criterion(reduction="sum")(output, targets), expected.sum().float())


def test_label_smoothing_and_outputs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="label_smoothing is of labels"):
        TASK.criterion(label_smoothing=0.1)
    for act in (TASK.scores, TASK.criterion()):
        with pytest.raises(ValueError, match="of another task"):  # they would broadcast
            act(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.int16))


class Answers(torch.nn.Module):
    """A model that knows the clean images."""

    pretrained_cfg = Unchanged.pretrained_cfg

    def __init__(self, clean, factor=1.0):
        super().__init__()
        self.clean, self.factor = clean, factor

    def forward(self, x):
        return self.factor * (self.clean - x)


def test_what_is_restored_exactly_is_better_than_any_noise_and_nothing_is_the_noise_itself(folder):
    """Halving every residual gains 20 log10 2 dB."""
    clean, images = noisy_images(folder, 12)
    data = build_dataset("folder", folder, "test")

    def of(model, **control):
        options = {"batch_size": 20, "noise": NOISE, **control}
        return evaluate_sizes(model, data, [12], **options)[12]

    without = of(Unchanged())
    assert without == pytest.approx(psnr(images.double() / 255, clean), rel=1e-12) and 20 < without < 21
    assert of(Answers(clean.float())) > 140  # rounding in float32
    assert of(Answers(clean.float(), 0.5)) == pytest.approx(without + 20 * math.log10(2), abs=1e-4)
    exact = TASK.scores(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2, dtype=torch.int16))
    assert exact.item() == math.inf and PSNR.show(exact.item()) == "inf dB"


def test_score_is_the_mean_over_images_of_any_batches(folder):
    clean, images = noisy_images(folder, 12)
    batches = make_loader(build_dataset("folder", folder, "test"), 12, 3, train=False, rendering=Rendering(noise=NOISE))
    score = evaluate(Unchanged(), batches, CPU, task=TASK)
    assert score.images == 20
    assert score.accuracy == pytest.approx(psnr(images.double() / 255, clean), rel=1e-12)
    assert score.loss == pytest.approx((images.double() / 255 - clean).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("size, trained", [(12, 8), (6, 8), (8, 8)])
def test_control_restores_at_the_trained_size_and_resizes_back(size, trained, folder, config):
    """By hand: the noisy image made smaller, restored there and enlarged, beside the clean image at its size."""
    model = build_model(config(), 2).eval()
    data = build_dataset("folder", folder, "test")
    found = evaluate_sizes(model, data, [size], batch_size=7, noise=NOISE, control=trained)[size]
    clean, images = noisy_images(folder, size)
    small = TF.resize(images, [trained, trained], TF.InterpolationMode.BILINEAR, antialias=True)
    with torch.no_grad():
        restored = small / 255 + model(to_input(small, model, CPU))
    back = TF.resize(restored, [size, size], TF.InterpolationMode.BICUBIC, antialias=True)
    # Batches round answers of about 1 by some 1e-6, which moves a mean squared error of about 1 by 1e-5 dB; near 0 dB a
    # relative tolerance would be none.
    assert found == pytest.approx(psnr(back, clean), abs=1e-4)
    plain = evaluate_sizes(model, data, [size], noise=NOISE)[size]
    assert (found == pytest.approx(plain, abs=1e-4)) == (size == trained)


CURVES = [Curve("s4nd", 16, {16: 28.314, 32: 29.0}), Curve("noisy", None, {16: 20.17, 32: 20.2})]


def test_table_sentence_and_plot_say_decibels():
    assert table(CURVES, PSNR).splitlines() == [
        "size       16       32",
        "s4nd    28.31*   29.00",
        "noisy   20.17    20.20",
        "PSNR in dB, * trained at this size",
    ]
    assert conclusion(CURVES, PSNR) == "s4nd: 28.31 dB at 16 (trained), 29.00 dB at 32: rises by 0.69 dB"
    (axes,) = plot_curves(CURVES, PSNR).axes
    assert axes.get_ylabel() == "test PSNR (dB)" and axes.get_ylim()[0] > 15
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines["s4nd"] == [28.314, 29.0] and lines["noisy"] == [20.17, 20.2]


# ---- the model


def test_model_answers_for_each_pixel_of_any_number_of_classes(config):
    model = build_model(config(), 2)
    assert model(torch.zeros(2, 3, 7, 9)).shape == (2, 3, 7, 9)
    assert build_model(config("data.noise=null"), 2)(torch.zeros(2, 3, 7, 9)).shape == (2, 2)


@pytest.mark.parametrize(
    "model, size, args, gives",
    [
        ("vit_tiny_patch16_224", 16, dict(depth=1, embed_dim=24), r"\(1, 2, 3\)"),
        ("s4nd_vit_tiny_patch16_224", 16, dict(depth=1, embed_dim=24), r"\(1, \d, 3\)"),
        ("convnext_atto", 32, {}, r"\(1, 3, 1, 1\)"),
        ("s4nd_convnext_micro", 32, dict(depths=[1, 1, 1, 1], dims=[4, 4, 4, 4]), r"\(1, 3, 1, 1\)"),
        ("s4nd_seq_tiny", 8, dict(depth=1, embed_dim=4, steps="value"), r"\(1, 3, 8, 24\)"),
    ],
)
def test_model_whose_output_is_not_on_the_grid_is_refused(model, size, args, gives, config):
    run = replace(config(f"stages.0.size={size}"), model=ModelConfig(model, args))
    needed = (
        rf"stages\.0, at {size} pixels: restoration needs an output \(B, 3, {size}, {size}\), on the image's own grid"
    )
    with pytest.raises(ValueError, match=rf"{needed}, as of s4nd_iso_tiny or conv_iso_tiny; {model} gives {gives}"):
        Trainer(run, CPU).learner.check_stages()


def test_sequence_of_pixels_is_on_the_grid(config):
    Trainer(config(model="s4nd_seq_tiny"), CPU).learner.check_stages()


# ---- training


def test_run_says_its_task_and_its_decibels(write_config, tmp_path, capsys):
    assert main(["train", str(write_config()), f"data.noise={NOISE}", "stages.0.epochs=2"]) == 0
    opening, first, last, best = capsys.readouterr().out.splitlines()
    assert opening == (
        "restoration: PSNR in dB, mean over the test images; white noise of a standard deviation of 25 grey levels"
    )
    run = tmp_path / "run" / "conv_iso_tiny"
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line, record in zip((first, last), records, strict=True):
        assert f"  test {record['test_psnr']:.2f} dB  lr " in line and "test_accuracy" not in record
        assert (record["task"], record["noise"]) == ("restoration", NOISE)
    meta = read_checkpoint(run / "last.safetensors")[2]
    assert (meta.task, meta.classes, meta.majority) == ("restoration", [], [])
    assert meta.accuracy == records[-1]["test_psnr"]
    figure = max(record["test_psnr"] for record in records)
    assert best.startswith(f"{run / 'best.safetensors'}: PSNR {figure:.2f} dB of the test split, which chose it")


def test_run_restores_more_than_it_is_given(trained, folder):
    clean, images = noisy_images(folder, 8)
    assert read_checkpoint(trained)[2].accuracy > psnr(images.double() / 255, clean) + 0.5


def test_score_of_a_run_is_that_of_its_restored_images(trained, folder):
    model, _, meta = load_model(trained)
    clean, images = noisy_images(folder, 8)
    with torch.no_grad():
        restored = images / 255 + model(to_input(images, model, CPU))
    assert meta.accuracy == pytest.approx(psnr(restored, clean), rel=1e-6)


def test_best_is_the_highest_even_below_zero(config, monkeypatch):
    figures = iter([-7.0, -3.0, -5.0])
    monkeypatch.setattr(Trainer, "test", lambda self: Score(next(figures), 1.0, 20))
    folder = train(config("stages.0.epochs=3"))
    assert read_checkpoint(folder / "best.safetensors")[2].epoch == 2


def test_a_step_trains_on_the_noise_of_its_epoch(config):
    run = Trainer(config(), CPU)
    run.enter(0)
    (images, targets), (again, others) = (next(iter(run.feed.training(0, epoch))) for epoch in (0, 1))
    assert images.dtype == torch.uint8 and targets.dtype == torch.int16 and targets.shape == images.shape
    assert not torch.equal(images, again) and not torch.equal(targets, others)
    run.learner.model.eval()
    with torch.no_grad():
        output = run.learner.model(to_input(images, run.learner.model, CPU))
    run.train_step(images, targets)
    expected = (output.double() - targets.double() / 255).square().mean()
    assert run.learner.steps().loss.item() == pytest.approx(expected.item(), rel=1e-5)


RANDOM = ["stages=[{size: 8, epochs: 2}, {size: 10, epochs: 1}]", "ema=0.9", "data.pad=0.125", "accumulate=2"]


@pytest.mark.parametrize("step", [2, 4, 7])
def test_interrupted_run_ends_with_the_same_weights(step, config, tmp_path, monkeypatch):
    options = {"model": "s4nd_iso_tiny", "d_state": 4, "proj_drop_rate": 0.1}
    whole = train(config(*RANDOM, f"out={tmp_path / 'whole'}", **options))
    overrides = [*RANDOM, "save_every_steps=1"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_step(patch, step)
        train(config(*overrides, **options))
    resumed = train(config(*overrides, "resume=auto", **options))
    one, other = states(whole), states(resumed)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert read_checkpoint(whole / "last.safetensors")[2] == read_checkpoint(resumed / "last.safetensors")[2]


def test_run_does_not_go_on_with_another_noise_or_task(config):
    train(config("stages.0.epochs=1"))
    for noise, said in (("10", "10.0"), ("null", "None")):
        with pytest.raises(ValueError, match=rf"data\.noise: 25\.0, now {said}"):
            train(config("stages.0.epochs=2", "resume=auto", f"data.noise={noise}"))


def test_run_on_a_stream_and_on_attributes_is_the_run_on_the_folder(config, stripes_in_shards, coloured, tmp_path):
    """Labels are not looked at: bit for bit the same images in shards, and pictures that have attributes."""
    runs = [
        train(config("stages.0.epochs=1", f"out={tmp_path / name}", *source))
        for name, source in (
            ("folder", []),
            ("stream", ["data.name=wds/stripes", f"data.root={stripes_in_shards}", "data.workers=2"]),
        )
    ]
    one, other = (read_checkpoint(run / "last.safetensors") for run in runs)
    assert one[2] == other[2] and all(torch.equal(one[0][key], other[0][key]) for key in one[0])
    csv = ["data.name=csv", f"data.root={coloured}", "data.workers=1", f"out={tmp_path / 'csv'}"]
    assert read_checkpoint(train(config("stages.0.epochs=1", *csv)) / "last.safetensors")[2].task == "restoration"


@pytest.mark.parametrize(
    "override, message",
    [
        ("mixup=0.5", "mixup is of labels, and with data.noise the model learns to restore images"),
        ("cutmix=0.5", "cutmix is of labels"),
        ("label_smoothing=0.1", "label_smoothing is of labels"),
        ("data.auto_augment=rand-m9", "data.auto_augment paints over an image what no camera sees"),
        ("data.reprob=0.5", "data.reprob paints over an image"),
        ("data.noise=0", r"data\.noise must be positive, got 0"),
        ("data.noise=300", r"data\.noise must be in \[0, 255\], got 300"),
        (
            "model.args.in_chans=1",
            "model.args.in_chans must be 3 with data.noise, which is alike in all channels, got 1",
        ),
        ("model.args.global_pool=avg", "model.args.global_pool cannot be set with data.noise"),
        ("data.name=video", "data.noise is for images, and data.name is video"),
    ],
)
def test_what_cannot_be_honoured_is_refused(override, message, config):
    with pytest.raises(ValueError, match=message):
        config(override)


def test_classifier_without_pooling_is_refused_before_it_trains(write_config):
    run = load_config(write_config(), ["model.args.global_pool=''"])
    with pytest.raises(ValueError, match=r"single-label needs an output \(B, 2\); conv_iso_tiny gives \(1, 2, 8, 8\)"):
        train(run)


# ---- evaluation


def run_eval(capsys, *arguments):
    capsys.readouterr()
    status = main(["eval", *map(str, arguments), "--device", "cpu"])
    return status, *capsys.readouterr()


def rows_of(out):
    return {line[: line.index("  ")]: line.split()[-2:] for line in out.splitlines()[1:] if "  " in line}


def test_noise_of_one_density_has_a_deviation_in_proportion_to_the_size(trained, folder, capsys, tmp_path):
    out = tmp_path / "density.png"
    status, printed, _ = run_eval(
        capsys, trained, "--sizes", "8", "12", "--control", "--noise-density", "--out", out, "--batch-size", "7"
    )
    model, data, rows = load_model(trained)[0], build_dataset("folder", folder, "test"), rows_of(printed)
    deviation = NOISE * 12 / 8
    expected = {
        "conv_iso_tiny": evaluate_sizes(model, data, [12], noise=deviation),
        "conv_iso_tiny, control": evaluate_sizes(model, data, [12], noise=deviation, control=8),
        "noisy": evaluate_sizes(Unchanged(), data, [12], noise=deviation),
    }
    assert status == 0
    assert {name: row[1] for name, row in rows.items()} == {name: f"{x[12]:.2f}" for name, x in expected.items()}
    home = f"{read_checkpoint(trained)[2].accuracy:.2f}*"
    assert rows["conv_iso_tiny"][0] == home
    about = json.loads(out.with_suffix(".json").read_text())[0]["about"]
    assert (about["noise"], about["one_density"]) == (NOISE, True)


def test_density_of_noise_is_refused_without_noise(config, capsys):
    path = train(config("data.noise=null", "stages.0.epochs=1")) / "last.safetensors"
    status, _, err = run_eval(capsys, path, "--sizes", "8", "--noise-density")
    assert status == 2 and "the density of the noise is of models that restore images, these are single-label" in err


def test_eval_has_rows_of_each_way_of_the_control_and_of_the_noisy_images(trained, folder, capsys):
    status, out, err = run_eval(capsys, trained, "--sizes", "8", "12", "--resample", "continuous", "hold", "--control")
    rows, meta = rows_of(out), read_checkpoint(trained)[2]
    assert status == 0 and list(rows) == [
        "conv_iso_tiny, continuous",
        "conv_iso_tiny, control",
        "conv_iso_tiny, hold",
        "noisy",
    ]
    assert "PSNR in dB, * trained at this size" in out
    home = f"{meta.accuracy:.2f}*"
    assert all(row[0] == home for name, row in rows.items() if name != "noisy")
    model = load_model(trained)[0]
    data = build_dataset("folder", folder, "test")
    expected = {
        "conv_iso_tiny, continuous": evaluate_sizes(model, data, [12], noise=NOISE),
        "conv_iso_tiny, control": evaluate_sizes(model, data, [12], noise=NOISE, control=8),
        "noisy": {12: psnr(*(x.double() / (255 if x.dtype == torch.uint8 else 1) for x in noisy_images(folder, 12)))},
    }
    assert {name: rows[name][1] for name in expected} == {name: f"{x[12]:.2f}" for name, x in expected.items()}
    assert f"conv_iso_tiny, control, 8 px: {meta.accuracy:.2f} dB" in err
    assert f"conv_iso_tiny, continuous: {meta.accuracy:.2f} dB at 8 (trained), " in out and "noisy: " not in out
    written = json.loads((trained.parent / "resolution.json").read_text())
    assert written[-1]["name"] == "noisy" and written[-1]["trained_size"] is None


def test_noisy_images_of_two_deviations_have_a_row_each(trained, config, tmp_path, capsys):
    other = train(config("data.noise=10", "stages.0.epochs=1", f"out={tmp_path / 'other'}")) / "last.safetensors"
    _, out, _ = run_eval(capsys, trained, other, "--sizes", "8")
    rows = [line for line in out.splitlines() if ", noisy" in line]
    assert len(rows) == 2 and float(rows[1].split()[-1]) - float(rows[0].split()[-1]) == pytest.approx(8, abs=0.3)


def test_other_images_of_other_classes_are_restored_too(trained, coloured, capsys):
    status, out, _ = run_eval(capsys, trained, "--sizes", "8", "--data", "csv", "--root", coloured)
    assert status == 0 and "noisy" in out


def test_accuracies_and_decibels_do_not_stand_in_one_table(trained, write_config, tmp_path, capsys):
    other = train(load_config(write_config(), ["stages.0.epochs=1", f"out={tmp_path / 'single'}"])) / "last.safetensors"
    status, _, err = run_eval(capsys, trained, other, "--sizes", "8")
    assert status == 2 and "figures of different tasks do not stand in one table" in err
    assert main(["report", str(trained.parent), str(other.parent), "--out", str(tmp_path / "r.html")]) == 2
    assert "accuracies and PSNRs do not stand beside each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, noise",
    [({"task": "single-label"}, NOISE), ({"task": "restoration"}, None), ({"classes": ["rows", "columns"]}, NOISE)],
)
def test_checkpoint_of_another_task_than_its_config_is_refused(changes, noise, trained, config, tmp_path):
    tensors, run, meta = read_checkpoint(trained)
    run.data.noise = noise
    save_checkpoint(tmp_path / "x.safetensors", tensors, run, replace(meta, **changes))
    with pytest.raises(ValueError, match=r"restoration goes with data\.noise and without classes, got "):
        read_checkpoint(tmp_path / "x.safetensors")


# ---- weights, exports and reports


@pytest.mark.parametrize("bare", [False, True])
def test_restored_model_begins_with_the_head_of_its_own_task(bare, trained, config, tmp_path):
    source = trained
    if bare:
        source = tmp_path / "plain.safetensors"
        save_file(read_checkpoint(trained)[0], source, {"task": "restoration"})
    run = config(f"init.weights={source}", "seed=3")
    trainer = Trainer(run, CPU)
    trainer.learner.initialise()
    for key, value in read_checkpoint(trained)[0].items():
        assert torch.equal(trainer.learner.model.state_dict()[key], value), key


@pytest.mark.parametrize("dense", [True, False])
def test_head_of_another_task_stays_as_drawn(dense, trained, write_config, tmp_path):
    single = load_config(write_config(), ["stages.0.epochs=1", f"out={tmp_path / 'single'}"])
    source = trained if not dense else train(single) / "last.safetensors"
    noise = [f"data.noise={NOISE}"] if dense else []
    run = load_config(write_config(), [f"init.weights={source}", "seed=3", *noise])
    trainer = Trainer(run, CPU)
    model = trainer.learner.model
    drawn = [p.clone() for p in model.head.parameters()]
    report = initialise(model, run, trainer.classes, trainer.task.name)
    was, now = ("single-label", "restoration") if dense else ("restoration", "single-label")
    said = f"; the file is {was} and the data is {now}; classifier as drawn: head.fc.weight, head.fc.bias"
    assert report.endswith(said)
    assert all(torch.equal(p, old) for p, old in zip(model.head.parameters(), drawn, strict=True))
    assert torch.equal(model.stem.weight, read_checkpoint(source)[0]["stem.weight"])


def test_export_is_the_residual_and_says_how_to_use_it(trained, folder, tmp_path, capsys):
    assert main(["export", str(trained), str(tmp_path / "model.pt2"), "--size", "12"]) == 0
    assert "12 x 12 pixels, any batch; residual: difference" in capsys.readouterr().out
    about = dict.fromkeys(("task", "classes", "noise", "restored", "mean", "std"), "")
    loaded = torch.export.load(tmp_path / "model.pt2", extra_files=about).module()
    assert (about["task"], about["classes"], about["noise"]) == ("restoration", "[]", "25.0")
    assert about["restored"] == "image / 255 + residual"
    clean, images = noisy_images(folder, 12)
    mean, std = (torch.tensor(json.loads(about[key]))[:, None, None] for key in ("mean", "std"))
    restored = images / 255 + loaded((images / 255 - mean) / std)
    expected = evaluate_sizes(load_model(trained)[0], build_dataset("folder", folder, "test"), [12], noise=NOISE)[12]
    assert psnr(restored.detach(), clean) == pytest.approx(expected, rel=1e-4)


def test_onnx_output_is_called_residual(trained, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    assert main(["export", str(trained), str(tmp_path / "model.onnx")]) == 0
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(out.name, out.shape[1:]) for out in session.get_outputs()] == [("residual", [3, 8, 8])]
    assert session.get_modelmeta().custom_metadata_map["task"] == "restoration"


def test_watch_refuses_it(trained, tmp_path, capsys):
    assert main(["watch", str(trained), str(tmp_path / "video.mp4")]) == 2
    assert "watch shows the likeliest of several classes, and " in capsys.readouterr().err


def test_report_and_picture_of_runs_say_decibels(trained, tmp_path, capsys):
    from s4nd.train.commands.report import read_run
    from tools.plot_runs import draw

    assert run_eval(capsys, trained, "--sizes", "8", "12")[0] == 0
    assert main(["report", str(trained.parent), "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    figure = read_checkpoint(trained)[2].accuracy
    assert f"{figure:.2f} dB (test)" in page and "PSNR after the last epoch" in page and "PSNR in dB, *" in page
    (axes,) = draw([read_run(trained.parent)], ["one"]).axes
    assert axes.get_ylabel() == "test PSNR (dB)" and axes.lines[0].get_label() == f"one: {figure:.2f}"
    assert axes.lines[0].get_ydata()[-1] == figure


def test_photographs_are_restored(config, capsys):
    """Grey crops, whose noise is grey, from the command to the table."""
    pytest.importorskip("skimage", reason="needs the extra: pip install 's4nd[demo]'")
    limits = ["data.train_limit=28", "data.test_limit=14", "stages.0.epochs=1"]
    path = train(config("data.name=photos", "data.root=null", *limits)) / "last.safetensors"
    status, out, _ = run_eval(capsys, path, "--sizes", "8", "16", "--control")
    assert status == 0 and 20 < float(rows_of(out)["noisy"][1]) < 21.5
    data = build_dataset("photos", None, "test", limit=14)
    (images, residual) = next(iter(make_loader(data, 16, 14, train=False, rendering=Rendering(noise=NOISE))))
    assert (images[:, :1] == images).all() and torch.equal(
        (images + residual).byte(), render([data[i][0] for i in range(14)], 16)
    )
