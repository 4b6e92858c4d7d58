"""The report of runs: one file with everything in it, and nothing in it that runs."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from s4nd.train.cli import main
from s4nd.train.commands.report import write_report
from s4nd.train.config import load_config
from s4nd.train.engine import train
from s4nd.train.resolution import Curve, read_curves, save_curves


class Page(HTMLParser):
    """The tags, what they refer to, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.sources, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def runs(write_config):
    overrides = ["stages.0.epochs=1", "log_every=1"]
    return [train(load_config(write_config(name), overrides)) for name in ("s4nd_iso_tiny", "conv_iso_tiny")]


def test_report_holds_all_that_it_shows(runs, tmp_path, capsys):
    checkpoints = [str(run / "last.safetensors") for run in runs]
    assert main(["eval", *checkpoints, "--sizes", "8", "12", "--device", "cpu"]) == 0
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "sub" / "r.html")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "sub" / "r.html")
    page = Page((tmp_path / "sub" / "r.html").read_text())
    assert not {"script", "link", "iframe"} & {*page.tags}
    assert page.tags.count("img") == 3 == len(page.sources)  # curves, resolution, the kernels of the one that has them
    for source in page.sources:
        kind, data = source.split(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")
    text = "".join(page.text)
    assert "s4nd_iso_tiny" in text and "optim.lr" in text and "torch: " in text
    accuracy = json.loads((runs[0] / "log.jsonl").read_text().splitlines()[-1])["test_accuracy"]
    assert f"{100 * accuracy:.1f} % (test)" in text


def test_keys_that_differ_are_marked(runs, tmp_path):
    page = write_report(runs, tmp_path / "r.html").read_text()
    differing = {key for key in re.findall(r'<tr><td class="differs">(.*?)</td>', page)}
    assert differing == {"model.name", "out"}
    alone = write_report(runs[:1], tmp_path / "r.html").read_text()
    assert 'class="differs"' not in alone


def test_text_of_a_run_is_text(runs, tmp_path):
    """Names of files come from outside."""
    odd = tmp_path / "<script>alert(1)</script>"
    odd.mkdir(parents=True)
    for file in runs[0].glob("*.*"):
        if file.is_file():
            (odd / file.name).write_bytes(file.read_bytes())
    (odd / "log.jsonl").write_text((odd / "log.jsonl").read_text() + '{"epoch": 2, "tr')
    save_curves([Curve("<img src=http://x>", 8, {8: 0.5})], odd / "resolution.json")
    page = Page(write_report([odd], tmp_path / "r.html").read_text())
    assert "script" not in page.tags and all(source.startswith("data:") for source in page.sources)


def test_what_is_no_run_is_refused(runs, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no checkpoint" in capsys.readouterr().err
    (runs[0] / "resolution.json").write_text('{"name": 3}')
    assert main(["report", str(runs[0])]) == 2
    assert "not what `s4nd eval` writes" in capsys.readouterr().err


def test_curves_are_read_as_they_were_written(tmp_path):
    curves = [Curve("a", 8, {8: 0.5, 12: 0.25}, {4: "too small"}), Curve("majority", None, {8: 0.75})]
    assert read_curves(save_curves(curves, tmp_path / "x.json")) == curves
