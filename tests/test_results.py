"""The pages of results, and the README's summary of them, against the CSV beside them: figures that drifted apart fail."""

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the extra: pip install 's4nd[demo]'")

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results"
PAGES = sorted(path for path in RESULTS.glob("*.md") if path.name != "README.md")
TABLE = re.compile(r"<!-- (table|runs):(\w+) -->\n(.*?)\n<!-- /\1 -->", re.DOTALL)
AGAINST = {  # columns that are no sizes
    "scifar": "model.args.disc",
    "motion_folds": "data.motion",
    "bandlimit_8": "stages.0.bandlimit",
    "bandlimit_32": "stages.0.bandlimit",
}
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Line of the README: its CSV, S4ND and its method, the convolution, sizes, settings where they differ.
SUMMARY = {
    "cifar10.md), 16": (
        "cifar10_16",
        "s4nd_iso_tiny",
        "hold+dilate",
        "conv_iso_tiny",
        (16, 32, 64),
        {"stages.0.epochs": "20"},
        {"stages.0.epochs": "20"},
    ),
    "cifar10.md), 8": (
        "cifar10_8",
        "s4nd_iso_tiny",
        "hold+dilate",
        "conv_iso_tiny",
        (8, 16, 32),
        {"model.args.init": "legs"},
        {},
    ),
    "imagenette.md), 64": (
        "imagenette",
        "s4nd_convnext_micro",
        "hold+dilate",
        "convnext_micro",
        (64, 128, 256),
        {},
        {},
    ),
    "celeba.md), 32": (
        "celeba",
        "s4nd_convnext_micro",
        "hold+dilate",
        "convnext_micro",
        (32, 64, 128),
        {"stages.0.size": "32"},
        {"stages.0.size": "32"},
    ),
    "photographs.md), 16": (
        "photographs",
        "s4nd_iso_tiny",
        "hold",
        "conv_iso_tiny",
        (16, 32, 64),
        {"stages.0.bandlimit": "1.0", "model.args.init": "legs"},
        {},
    ),
}


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return runpy.run_path(str(ROOT / "tools/tables.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_of_a_page_are_those_of_its_csv(page, tool):
    tables = TABLE.findall(page.read_text())
    assert tables
    for kind, name, text in tables:
        lines = tool["read_csv"](RESULTS / f"{name}.csv")
        assert text == tool["markdown"](lines, AGAINST.get(name), single=kind == "runs"), f"{page}, {name}"


def test_every_csv_has_its_plot_and_its_page():
    names = {path.stem for path in RESULTS.glob("*.csv")}
    assert names == {name for page in PAGES for _, name, _ in TABLE.findall(page.read_text())}
    for name in names:
        assert (RESULTS / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", [*PAGES, RESULTS / "README.md", ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link and not link.startswith("#")]
    assert links and not [link for link in links if not (page.parent / link).is_file()]


def test_index_names_every_page():
    assert {*LINK.findall((RESULTS / "README.md").read_text())} == {page.name for page in PAGES}


@pytest.mark.parametrize("start", SUMMARY)
def test_summary_in_the_readme_has_the_figures_of_the_pages(start, tool):
    csv, model, method, twin, sizes, settings, of_twin = SUMMARY[start]
    lines = tool["read_csv"](RESULTS / f"{csv}.csv")

    def figures(model, method, settings):
        cells = (
            [
                line
                for line in lines
                if (line.model, line.resample, line.size) == (model, method, size)
                and settings.items() <= line.settings.items()
            ]
            for size in sizes
        )
        return ", ".join(f"{tool['spread'](cell)[0]:.1f}" if cell else "-" for cell in cells)

    expected = [
        figures(model, method, settings),
        figures(model, "control", settings),
        figures(twin, "continuous", of_twin),
        figures(twin, method, of_twin),
    ]
    (row,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|") and start in line)
    assert row.strip("| ").split(" | ")[1:] == expected
