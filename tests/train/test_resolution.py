"""Table, sentence and plot against curves that are known, and accuracies against counting by hand."""

import sys

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from s4nd.train.cli import main
from s4nd.train.config import load_config
from s4nd.train.data import ImageTransforms, build_dataset
from s4nd.train.data.resized import render
from s4nd.train.engine import train
from s4nd.train.model import build_model, to_input
from s4nd.train.resolution import Curve, conclusion, evaluate_sizes, plot, table

CURVES = [
    Curve("s4nd", 16, {16: 0.931, 32: 0.925, 64: 0.92}),
    Curve("conv", 16, {16: 0.9, 32: 0.7, 64: 0.548}),
]


def test_table_has_a_row_per_checkpoint_and_stars_the_trained_size():
    assert table(CURVES).splitlines() == [
        "size      16       32       64",
        "s4nd    93.1*    92.5     92.0",
        "conv    90.0*    70.0     54.8",
        "accuracy in %, * trained at this size",
    ]


def test_conclusion_compares_the_trained_size_with_the_farthest():
    assert conclusion(CURVES) == (
        "s4nd: 93.1 % at 16 (trained), 92.0 % at 64: falls by 1.1 points; "
        "conv: 90.0 % at 16 (trained), 54.8 % at 64: falls by 35.2 points"
    )


def test_conclusion_needs_neither_the_trained_size_nor_two_sizes():
    assert conclusion([Curve("a", 16, {8: 0.5, 12: 0.6})]) == "a: 50.0 % at 8, 60.0 % at 12: rises by 10.0 points"
    assert conclusion([Curve("a", 16, {16: 0.5})]) == "a: 50.0 % at 16 (trained)"


def test_plot_is_a_png(tmp_path):
    path = plot(CURVES, tmp_path / "deep" / "x.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 500


def test_plot_refuses_another_format(tmp_path):
    with pytest.raises(ValueError, match=r"must be a .png file"):
        plot(CURVES, tmp_path / "x.jpg")


def test_missing_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"s4nd\[demo\]"):
        plot(CURVES, tmp_path / "x.png")


def test_accuracy_is_the_share_of_right_answers(write_config, folder):
    model = build_model(load_config(write_config()), 2).eval()
    dataset = build_dataset("folder", str(folder), "test")
    images, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    with torch.no_grad():
        answers = model(to_input(torch.stack(images), model, torch.device("cpu"))).argmax(-1)
    expected = (answers == torch.tensor(labels)).float().mean().item()  # 12 is the native size: nothing is resized
    assert evaluate_sizes(model, dataset, [12], batch_size=7) == {12: pytest.approx(expected)}


def test_size_zero_is_refused(write_config, folder):
    model = build_model(load_config(write_config()), 2)
    with pytest.raises(ValueError, match="sizes must be at least 1, got 0"):
        evaluate_sizes(model, build_dataset("folder", str(folder), "test"), [0])


def test_plot_has_room_for_a_long_name(tmp_path):
    """matplotlib warns, which is an error here, when a legend leaves no room for the axes."""
    curve = Curve("model (/" + "a/long/path" * 40 + ")", 16, {16: 0.5, 32: 0.4})
    assert plot([curve], tmp_path / "long.png").stat().st_size > 0


class Seeing(torch.nn.Module):
    """Keeps the pixels that it is given."""

    pretrained_cfg = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "input_size": (3, 8, 8)}  # noqa: RUF012

    def forward(self, x):
        self.seen = x
        return torch.zeros(len(x), 2)


def test_control_runs_at_the_trained_size_on_images_that_were_rendered_at_another(folder):
    dataset, model = build_dataset("folder", str(folder), "test"), Seeing()
    evaluate_sizes(model, dataset, [10], batch_size=20, control=8)
    rendered = render([dataset[i][0] for i in range(20)], 10)
    resized = v2.functional.resize(rendered, [8, 8], antialias=True)
    torch.testing.assert_close(model.seen, resized.float())


def test_images_are_rendered_at_each_size_as_the_transforms_say(folder):
    """Two thirds of 12 pixels at the size of 8: the middle as it is."""
    dataset, model = build_dataset("folder", str(folder), "test"), Seeing()
    evaluate_sizes(model, dataset, [8], batch_size=20, transforms=ImageTransforms(crop_pct=0.6666))
    middle = torch.stack([dataset[i][0][:, 2:10, 2:10] for i in range(20)])
    torch.testing.assert_close(model.seen, middle.float())


def test_eval_has_a_row_for_each_way_and_the_control(write_config, capsys):
    paths = [train(load_config(write_config(name))) / "last.safetensors" for name in ("s4nd_iso_tiny", "conv_iso_tiny")]
    capsys.readouterr()
    ways = ["--resample", "continuous", "hold", "dilate", "hold+dilate", "fold", "--control"]
    assert main(["eval", *map(str, paths), "--sizes", "8", "16", *ways, "--device", "cpu"]) == 0
    said, _, *rows = capsys.readouterr().out.splitlines()
    assert said == "conv_iso_tiny, fold: left out: fold is for S4ND layers, of which it has none"
    assert rows.pop(5).startswith("s4nd_iso_tiny, fold ")
    rows, each = rows[:10], ("continuous", "control", "hold", "dilate", "hold+dilate")
    labels = [f"{name}, {row}" for name in ("s4nd_iso_tiny", "conv_iso_tiny") for row in each]
    assert [row[: row.index("  ")].strip() for row in rows] == labels
    for i in (0, 5):  # at the trained size all are one
        assert len({row.split()[-2] for row in rows[i : i + 5]}) == 1
