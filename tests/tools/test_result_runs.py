"""What of a run's evaluation counts, and what must not stand in one table."""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the extra: pip install 's4nd[demo]'")

from s4nd.train.resolution import Curve, read_curves, save_curves
from tests.made_runs import AT_8_AND_16, cells, evaluate, write_weights


def test_what_does_not_change_a_run_makes_no_other_row(make_run, tables):
    aside = ["device=cpu", "log_every=7", "data.workers=2", "resume=auto", "save_every_steps=9"]
    assert len(cells(tables(make_run("a", seed=0), make_run("b", *aside, seed=1))[0])) == 2


def test_setting_that_is_none_in_one_run_and_absent_in_the_others_makes_no_column(make_run, tables):
    runs = [make_run("a", "model.args.bandlimit=null", "optim.lr=0.5"), make_run("b", "model.args.rank=2")]
    head, *rows = cells(tables(*runs)[0])
    assert head[1:3] == ["optim.lr", "model.args.rank"]
    assert [row[2] for row in rows] == ["", "2"]


def test_list_of_numbers_is_one_setting(make_run, tables):
    head, *rows = cells(tables(make_run("a", "stages.0.sizes=[8, 16]"), make_run("b"))[0])
    assert head[1] == "stages.0.sizes"
    assert [row[1] for row in rows] == ["8 16", "none"]


def test_figures_count_for_the_run_of_their_bytes_wherever_they_lie(make_run, tables):
    """`s4nd eval A B` leaves the figures of both beside A; the control is a row of its own."""
    a, b = make_run("a"), make_run("b", model="conv_iso_tiny", evaluated=None)
    evaluate(a, {8: 0.5, 16: 0.45}, control=True)
    evaluate(a, {8: 0.125}, resample="continuous", of=b)
    head, *rows = cells(tables(a, b)[0])
    at = head.index("resample")
    assert [(row[0], row[at], row[at + 1]) for row in rows] == [
        ("s4nd_iso_tiny", "hold", "50.0*"),
        ("s4nd_iso_tiny", "control", "50.0*"),
        ("conv_iso_tiny", "continuous", "12.5*"),
    ]


def test_figures_that_do_not_say_how_they_came_to_be_are_refused(make_run, refused):
    """As older versions wrote them, under other names."""
    run = make_run("a")
    path = run / "resolution.json"
    path.write_text(path.read_text().replace('"resample"', '"way"'))
    assert f"{path}, a, hold: does not say resample: evaluate it again" in refused(run)


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"data": "cifar10"}, "several data sets: photos"),
        ({"images": 100}, "several numbers of test images: 700"),
        ({"labels": "cd34"}, "several images or labels: ab12"),
        ({"metric": "PSNR"}, "several metrics: accuracy"),
        ({"unit": "dB"}, "several units: %"),
        ({"skip_bad": True}, "several ways with unreadable images"),
    ],
)
def test_figures_of_another_test_are_refused(make_run, refused, about, reason):
    said = refused(make_run("a"), make_run("b", seed=1, **about))
    assert reason in said and "/a)" in said and "/b)" in said


def test_evaluation_of_other_weights_is_refused(make_run, refused):
    run = make_run("a")
    assert "was not evaluated: s4nd eval" in refused(run, make_run("b", seed=1, evaluated=None))
    write_weights(run, "seed=0", weights="ema")
    assert "is not of last.safetensors as it is now, but of a/last.safetensors after epoch 2" in refused(run)


def test_unfinished_run_and_one_that_counts_twice_are_refused(make_run, refused):
    run = make_run("a")
    assert "2 runs of s4nd_iso_tiny have one config and one seed, 0" in refused(run, run)
    assert "is of epoch 1 of 2" in refused(run, make_run("b", seed=1, epoch=1))


def older(folder: Path, *curves: Curve) -> Path:
    """Evaluated by a version that said no more than this."""
    path = save_curves(curves, folder / "resolution.json")
    trees = [{key: value for key, value in tree.items() if key != "about"} for tree in json.loads(path.read_text())]
    path.write_text(json.dumps(trees))
    return folder


def test_older_evaluation_counts_where_nothing_speaks_against_it(make_run, tables, refused):
    run = older(
        make_run("a"), Curve("s4nd_iso_tiny, hold", 8, AT_8_AND_16), Curve("s4nd_iso_tiny, control", 8, {8: 0.5})
    )
    head, *rows = cells(tables(run)[0])
    assert [row[head.index("resample")] for row in rows] == ["hold", "control"]
    other_accuracy = Curve("s4nd_iso_tiny, hold", 8, {8: 0.5 + 1e-3})  # than the checkpoint says
    for curve in (other_accuracy, Curve("conv_iso_tiny, hold", 8, {8: 0.5}), Curve("s4nd_iso_tiny", 8, {16: 0.5})):
        assert "not of last.safetensors as it is now, but of a file that it does not name" in refused(older(run, curve))
    older(run, Curve("s4nd_iso_tiny, hold", 8, AT_8_AND_16))
    other = make_run("b", "data.test_limit=5", seed=1)
    assert "does not say on what data it is, and the configs have several" in refused(run, other)
    os.utime(run / "resolution.json", (1, 1))  # before the checkpoint
    assert "not of last.safetensors as it is now" in refused(run)


def test_majority_is_a_row_without_a_run(make_run, tables, refused):
    a = make_run("a")
    curves = read_curves(a / "resolution.json")
    save_curves([*curves, Curve("majority", None, {8: 0.75, 16: 0.75})], a / "resolution.json")
    *_, row = cells(tables(a)[0])
    assert row[0] == "majority" and row[-2:] == ["75.0", "75.0"]
    b = make_run("b", seed=1)
    save_curves([*read_curves(b / "resolution.json"), Curve("majority", None, {8: 0.5})], b / "resolution.json")
    assert "several answers that need no image" in refused(a, b)
    write_weights(b, "seed=1", weights="ema")  # now nothing beside b is of b, nor its majority
    evaluate(a, {8: 0.25}, of=b)
    assert cells(tables(a, b)[0])[-1][-2:] == ["75.0", "75.0"]
