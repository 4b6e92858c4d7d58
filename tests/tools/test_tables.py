"""Tables of runs against numpy and against what was written into small made-up run folders."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra: pip install 's4nd[demo]'")

from tests.made_runs import AT_8_AND_16, cells, evaluate


def test_runs_that_differ_by_seed_alone_are_one_row_with_their_mean_and_deviation(make_run, tables):
    figures = {0: {8: 0.5, 16: 0.25}, 1: {8: 0.625, 16: 0.75}, 5: {8: 0.55, 16: 0.125}}
    runs = [make_run(f"r{seed}", seed=seed, evaluated=figures[seed]) for seed in figures]
    table, out = tables(*runs)
    percents = 100 * np.array([[figures[seed][size] for size in (8, 16)] for seed in figures])
    mean, deviation = percents.mean(0), percents.std(0, ddof=1)
    head, row = cells(table)
    assert head == ["model", "seeds", "epochs", "hours", "resample", "8", "16"]
    expected = [f"{m:.1f} ± {s:.1f}{star}" for m, s, star in zip(mean, deviation, ("*", ""), strict=True)]
    assert row == ["s4nd_iso_tiny", "0, 1, 5", "2", "0.50", "hold", *expected]
    assert Path(f"{out}.png").read_bytes().startswith(b"\x89PNG")


def test_other_configs_are_other_rows_and_the_table_says_in_what(make_run, tables):
    runs = [make_run(f"r{i}", f"stages.0.bandlimit={alpha}") for i, alpha in enumerate(("0.5", "null"))]
    conv = make_run("c", "stages.0.bandlimit=null", model="conv_iso_tiny", evaluated={8: 0.4}, resample="continuous")
    head, *rows = cells(tables(*runs, conv)[0])
    at = head.index("stages.0.bandlimit")
    assert [(row[0], row[at]) for row in rows] == [("s4nd_iso_tiny", x) for x in ("0.5", "none")] + [
        ("conv_iso_tiny", "none")
    ]
    assert rows[2][-2:] == ["40.0*", "-"]
    assert not {"seed", "out", "device", "resume"} & {*head}


def test_cell_of_fewer_seeds_than_its_row_says_so(make_run, tables):
    _, row = cells(tables(make_run("a", seed=0), make_run("b", seed=1, evaluated={8: 0.25}))[0])
    assert row[-2:] == ["37.5 ± 17.7*", "25.0 (1)"]


def test_csv_holds_every_digit_and_takes_the_place_of_the_runs(make_run, tables, tool):
    third = {8: 1 / 3, 16: 2 / 7}
    runs = [make_run("a", "stages.0.bandlimit=0.5", evaluated=third), make_run("b", "stages.0.bandlimit=null", seed=1)]
    table, out = tables(*runs)
    lines = tool["read_csv"](Path(f"{out}.csv"))
    assert lines == tool["read_runs"](runs) and len(lines) == 4
    first = lines[0]
    assert (first.run, first.seed, first.epochs, first.hours, first.images) == ("a", 0, 2, 0.5, 700)
    assert (first.size, first.value, first.unit, first.settings) == (
        8,
        100 * (1 / 3),
        "%",
        {"stages.0.bandlimit": "0.5"},
    )
    before = Path(f"{out}.csv").read_bytes()
    assert tables(f"{out}.csv")[0] == table
    assert Path(f"{out}.csv").read_bytes() == before


def test_damaged_csv_is_refused_with_its_line(make_run, tables, refused):
    _, out = tables(make_run("a"))
    path = Path(f"{out}.csv")
    whole = path.read_text()
    for old, new, reason in (
        ("50.0", "half", "line 2: value must be of type float, got 'half'"),
        (",accuracy,%,50.0", "", "line 2: needs"),
        ("trained_size", "other", "has no trained_size"),
        (whole.split("\n", 1)[1], "", "holds no line"),
    ):
        path.write_text(whole.replace(old, new, 1))
        assert reason in refused(path)
    assert "one CSV alone" in refused(path, path)


def test_columns_are_the_values_of_a_setting_and_none_is_the_last(make_run, tables, tool):
    alphas = {"null": 0.25, "0.05": 0.125, "1": 0.5, "0.2": 0.375}
    runs = [
        make_run(f"{seed}{alpha}", f"stages.0.bandlimit={alpha}", seed=seed, evaluated={8: x + seed / 8, 16: x / 2})
        for alpha, x in alphas.items()
        for seed in (0, 1)
    ]
    head, *rows = cells(tables(*runs, "--against", "stages.0.bandlimit", "--sizes", "16")[0])
    assert head[-4:] == ["0.05", "0.2", "1.0", "none"]
    assert [row[-4:] for row in rows] == [["6.2 ± 0.0", "18.8 ± 0.0", "25.0 ± 0.0", "12.5 ± 0.0"]]
    lines = tool["read_runs"](runs)
    figure = tool["draw"](lines, "stages.0.bandlimit")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == head[-4:]
    assert [list(container.lines[0].get_ydata()) for container in axes.containers] == [
        [12.5 + 6.25, 37.5 + 6.25, 50.0 + 6.25, 25.0 + 6.25],
        [6.25, 18.75, 25.0, 12.5],
    ]
    assert axes.get_xlabel() == "stages.0.bandlimit"


def test_plot_names_settings_by_the_last_word_of_their_keys_where_that_tells_them_apart(make_run, tool):
    runs = [make_run(str(x), f"stages.0.bandlimit={x}", f"optim.lr={x}", evaluated={8: x}) for x in (0.25, 0.5)]
    labels = [text.get_text() for text in tool["draw"](tool["read_runs"](runs)).legends[0].get_texts()]
    assert [("lr 0.25" in label, "bandlimit 0.5" in label) for label in labels] == [(True, False), (False, True)]
    assert not any("optim." in label or "stages." in label for label in labels)
    lines = [replace(line, settings={"a.size": "1", "b.size": "2"}) for line in tool["read_runs"](runs[:1])]
    (label,) = (text.get_text() for text in tool["draw"](lines).legends[0].get_texts())
    assert "a.size 1" in label and "b.size 2" in label


def test_words_are_columns_whose_points_are_not_joined(make_run, tool):
    runs = [
        make_run(x, f"model.args.disc={x}", "model.args.kernel=s4d", evaluated={8: 0.5}) for x in ("zoh", "bilinear")
    ]
    lines = tool["read_runs"](runs)
    (axes,) = tool["draw"](lines, "model.args.disc").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["bilinear", "zoh"]
    assert axes.containers[0].lines[0].get_linestyle() == "None"


def test_wrong_setting_or_size_is_refused(make_run, refused):
    runs = [make_run("a", "stages.0.bandlimit=0.5"), make_run("b", "stages.0.bandlimit=null")]
    said = refused(*runs, "--against", "optim.lr")
    assert "--against optim.lr" in said and "what differs is stages.0.bandlimit" in said
    assert "nothing was measured of size 12, only of 8, 16" in refused(*runs, "--sizes", "12")


def test_only_the_ways_that_are_asked_for(make_run, tables, refused):
    run = make_run("r", evaluated={8: 0.5, 16: 0.25})
    evaluate(run, AT_8_AND_16, control=True)
    methods = [row[-3] for row in cells(tables(run)[0])[1:]]
    assert len(methods) == 2 and "control" in methods
    assert [row[-3] for row in cells(tables(run, "--resample", "control")[0])[1:]] == ["control"]
    assert f"nothing was measured of resample fold, only of {', '.join(sorted(methods))}" in refused(
        run, "--resample", "fold"
    )


def test_control_is_dashed_and_bars_are_the_deviation(make_run, tool):
    runs = [make_run(f"r{seed}", seed=seed, evaluated={8: 0.5, 16: 0.25 + seed / 8}) for seed in (0, 1)]
    evaluate(runs[0], AT_8_AND_16, control=True)
    (axes,) = tool["draw"](tool["read_runs"](runs)).axes
    held, control = axes.containers
    assert (held.lines[0].get_linestyle(), control.lines[0].get_linestyle()) == ("-", "--")
    assert held.lines[0].get_color() == control.lines[0].get_color()
    low, high = held.lines[2][0].get_segments()[1][:, 1]
    np.testing.assert_allclose((high - low) / 2, np.std([25.0, 37.5], ddof=1))


def test_value_of_another_unit_is_what_was_measured(make_run, tables):
    _, row = cells(tables(make_run("a", evaluated={8: 30.126}, metric="PSNR", unit="dB"))[0])
    assert row[-1] == "30.13*"


def test_table_takes_the_place_of_what_stands_between_its_markers(make_run, tables, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "one\n<!-- table:topic -->\nold\n<!-- /table -->\ntwo\n<!-- runs:topic -->\n<!-- /runs -->\nthree\n"
    )
    runs = [make_run(f"r{seed}", seed=seed) for seed in (0, 1)]
    for _ in range(2):  # the second time it replaces itself
        table, _ = tables(*runs, "--insert", page)
        text = page.read_text()
        assert text.startswith(
            f"one\n<!-- table:topic -->\n{table.strip()}\n<!-- /table -->\ntwo\n<!-- runs:topic -->\n"
        )
        assert text.endswith("<!-- /runs -->\nthree\n")
    single = cells(text.split("<!-- runs:topic -->")[1])
    assert [row[1] for row in single[1:]] == ["0", "1"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- table:other -->\n<!-- /table -->",
        "<!-- table:topic -->\n",
        "<!-- table:topic -->\n<!-- table:other -->\n<!-- /table -->",
        "<!-- table:topic -->\n<!-- /table -->\n" * 2,
    ],
)
def test_page_without_its_markers_is_refused_and_stays(make_run, refused, tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    assert "needs <!-- " in refused(make_run("a"), "--insert", page)
    assert page.read_text() == text


def test_seed_stands_in_a_cell_once(tool, make_run):
    lines = tool["read_runs"]([make_run("a")])
    with pytest.raises(ValueError, match="for seed 0, got two"):
        tool["markdown"]([*lines, replace(lines[0], run="b")])
