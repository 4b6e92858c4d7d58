"""The benchmark for GPUs against what its help promises, on a CPU: every section, what cannot run, and what goes wrong."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench_gpu.py"
SECTIONS = ("correct", "layer", "generation", "launches", "attention", "video", "images")


def run(out, *arguments):
    """The tool as it is called, without Triton's interpreter; -> what it printed, what it wrote."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOOL.parents[1])}
    command = [sys.executable, str(TOOL), "--quick", "--device", "cpu", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout, json.loads(out.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "new" / "bench"
    return *run(out), out


def entries(section):
    return [(of, who, values) for of, row in section["results"].items() for who, values in row.items()]


def test_every_section_is_measured_printed_and_drawn(quick):
    printed, report, out = quick
    assert tuple(report["sections"]) == SECTIONS and report["machine"]["bytes per second"] > 0
    for name, section in report["sections"].items():
        assert f"\n{name}: {section['about']}" in printed and "reason" not in section
        assert any("reason" not in values for _, _, values in entries(section))
        for _, _, values in entries(section):
            assert all(x > 0 for key, x in values.items() if isinstance(x, float) and key in ("ms", "per second"))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert "no picture: it needs matplotlib" in printed
    else:
        assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_errors_are_at_most_twice_those_of_plain_torch(quick):
    _, report, _ = quick
    found = {(of, who): values for of, who, values in entries(report["sections"]["correct"])}
    measured = {key: values for key, values in found.items() if "reason" not in values}
    for who in ("torch", "toeplitz", "fft", "kronecker"):
        assert any(key[1] == who for key in measured)
    assert {of.split(", ")[-1] for of, _ in measured} == {"float32", "bfloat16"}
    wrong = {key: values for key, values in measured.items() if not values["right"] or values["ratio"] > 2}
    assert wrong == {}


def test_what_cannot_run_is_an_entry_with_its_reason(quick):
    _, report, _ = quick
    triton = [values for _, who, values in entries(report["sections"]["correct"]) if who == "triton"]
    assert len(triton) == 3 and all("needs a CUDA device" in values["reason"] for values in triton)
    compiled = [values for _, who, values in entries(report["sections"]["images"]) if who.endswith("compiled")]
    assert compiled and all("left out by --quick" in values["reason"] for values in compiled)


def test_signals_are_timed_against_the_memory_and_against_convolutions(quick):
    _, report, _ = quick
    for of, row in report["sections"]["layer"]["results"].items():
        assert {"memory's limit", "s4d layer", "s4 layer", "7 x 7 contiguous", "7 x 7 channels_last"} <= set(row), of
    passing = {of: row["memory's limit"]["bytes"] for of, row in report["sections"]["layer"]["results"].items()}
    signal_bytes = 2 * 4 * 8 * 8 * 2  # two images of 4 x 8 x 8 in bfloat16
    assert passing["4x8x8, bfloat16, forward"] == 2 * signal_bytes
    assert passing["4x8x8, bfloat16, step"] == 5 * signal_bytes
    assert passing["4x8x8, float32, step"] == 10 * signal_bytes


def test_without_time_sections_are_left_out_and_said_to_be(tmp_path):
    printed, report = run(tmp_path / "bench", "--seconds", "0.001", "--only", "correct", "layer")
    assert all(section["reason"].startswith("left out: ") for section in report["sections"].values())
    assert list(report["sections"]) == ["correct", "layer"] and "left out: 0 of 0 s were left" in printed


@pytest.fixture
def tool(monkeypatch):
    """tool(name) -> the names of a module of the tool."""
    monkeypatch.syspath_prepend(str(TOOL.parent))
    return lambda name: runpy.run_path(str(TOOL.parent / "gpu" / f"{name}.py"), run_name="tool")


def fails():
    raise RuntimeError("no backend\nand more")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of threads: nothing is computed here
@pytest.mark.parametrize(
    "last, reason",
    [
        (lambda: {"ms": 2.0}, None),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "its process ended with status -9"),
        (lambda: time.sleep(15), "ended after 2 s, its share of the time; what is left out was not measured"),
    ],
    ids=["it ends", "it dies", "it hangs"],
)
def test_a_section_that_goes_wrong_leaves_what_it_measured_and_ends_alone(tool, last, reason):
    names, told = tool("runner"), []
    row = tool("settings")["Row"]

    def section(settings):
        """Rows that are measured, one that fails and one that ends."""
        assert settings == "settings"
        yield row("a", "first", lambda: {"ms": 1.0})
        yield row("a", "failing", fails)
        yield row("b", "last", last)

    found = names["run_section"](section, lambda: "settings", 2.0, lambda *entry: told.append(entry))
    assert found == reason
    expected = [("a", "first", {"ms": 1.0}), ("a", "failing", {"reason": "RuntimeError: no backend"})]
    assert told == expected + [("b", "last", {"ms": 2.0})] * (reason is None)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_section_that_cannot_begin_says_why(tool):
    assert tool("runner")["run_section"](lambda settings: iter(()), fails, 2.0, print) == "RuntimeError: no backend"


def test_launches_are_operations_that_compute(tool):
    names = tool("launches")
    x = torch.zeros(3, 4)
    with names["Launches"]() as seen:
        y = x.t()[1:].unsqueeze(0).flatten().detach()  # a copy in the middle
        torch.empty(3), torch.empty_like(x)
        assert seen.count == 1
        (y + 1).mul_(2)
        assert seen.count == 3


def test_calls_of_compiled_code_are_counted(tool):
    code = """
def helper(x):
    cpp_fused_before_0(x)
def call(self, args):
    buf0 = empty_strided_cpu((3,), (1,), torch.float32)
    cpp_fused_add_0(primals_1, buf0)
    buf1 = torch.ops.s4nd.vandermonde.default(buf0, 5)
    extern_kernels.bmm(buf0, buf1, out=buf2)
    # torch.ops.s4nd.vandermonde.default
    return (buf2, )
"""
    assert tool("launches")["calls"](code) == 3


def test_errors_are_relative_and_gradients_count(tool):
    names = tool("correct")
    right = [torch.tensor([2.0, -4.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)]
    plain, mine = [x.float() * (1 + 1e-5) for x in right], [x.float() * (1 + 1e-5) for x in right]
    assert names["compared"](["value", "gradient"], right, mine, plain)["right"]
    mine[1] = right[1].float() * (1 + 3e-5)
    found = names["compared"](["value", "gradient"], right, mine, plain)
    assert not found["right"] and found["worst"] == "gradient" and found["ratio"] == pytest.approx(3, rel=0.05)
    mine[1] = torch.tensor([float("nan")])
    assert not names["compared"](["value", "gradient"], right, mine, plain)["right"]
