"""The examples of CONTRIBUTING.md: run as they stand, the kernel against its recurrence, step by step, in float64."""

import re
import warnings
from pathlib import Path

import pytest
import torch
import yaml

import s4nd
from s4nd import S4ND
from s4nd.nn.kernels import KERNELS
from s4nd.ssm.recurrence import centred_recurrence, dense_ssm, discretize_dense, recurrence

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
F64 = torch.float64


def example(name):
    """What the Python block that defines `name` defines."""
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if f" {name}(" in code)
    found = {"set_bandlimit": s4nd.set_bandlimit}
    exec(compile(block, "CONTRIBUTING.md", "exec"), found)
    return found[name]


@pytest.fixture
def octaves(monkeypatch):
    kernel = example("OctavesKernel")
    monkeypatch.setitem(KERNELS, "octaves", kernel)
    return kernel


@pytest.mark.parametrize("align", ["edge", "centre"])
@pytest.mark.parametrize("rate", [1.0, 0.5, 2.0])
def test_kernel_of_the_example_is_its_state_space_model(octaves, rate, align):
    torch.manual_seed(0)
    kernel = octaves(3, 8, 2, damping=0.1, dt_min=0.1, dt_max=0.5, dtype=F64)
    impulse = torch.zeros(3, 9, dtype=F64)
    impulse[:, 0] = 1
    with torch.no_grad():
        A, C = torch.view_as_complex(kernel.A()), torch.view_as_complex(kernel.C)
        octave = torch.full((3, 3), 2.0, dtype=F64)
        torch.testing.assert_close(A.real, torch.full_like(A.real, -0.1), rtol=1e-12, atol=0)
        torch.testing.assert_close(A.imag[:, :-1] / A.imag[:, 1:], octave, rtol=1e-12, atol=0)
        A, B, C = dense_ssm(A, torch.ones_like(A), C)
        Ab, Bb = discretize_dense(kernel.dt()[:, 0], A, B, "zoh", rate, 0.5 if align == "centre" else 1.0)
        expected = (centred_recurrence if align == "centre" else recurrence)(Ab, Bb, C, impulse)
        torch.testing.assert_close(kernel(9, rate, align=align), expected, rtol=0, atol=1e-11 * expected.abs().max())


def test_layer_takes_the_kernel_of_the_example_and_its_option(octaves):
    torch.manual_seed(0)
    layer = S4ND(3, 2, kernel="octaves", d_state=8, damping=(0.2, 0.4), bidirectional=[False, True], dtype=F64).eval()
    assert [kernel.damping for kernel in layer.kernels] == [0.2, 0.4]
    u, state = torch.randn(2, 3, 5, 4, dtype=F64), None
    with torch.no_grad():
        expected = layer(u)
        for i in range(5):
            y, state = layer.step(u[:, :, i], state)
            torch.testing.assert_close(y, expected[:, :, i], rtol=0, atol=1e-12 * expected.abs().max())
    with pytest.raises(ValueError, match="damping must be positive, got 0"):
        S4ND(3, kernel="octaves", damping=0)
    with pytest.raises(TypeError, match="takes no damping"):
        S4ND(3, kernel="s4d", damping=0.2)


def test_kernels_are_named_in_one_line_and_each_has_its_file():
    init = (ROOT / "s4nd/nn/kernels/__init__.py").read_text(encoding="utf-8")
    assert len(re.findall(r"^KERNELS: .* = .*$", init, re.MULTILINE)) == 1
    for name, kind in KERNELS.items():
        assert kind.__module__ == f"s4nd.nn.kernels.{name}"


def test_deprecation_of_the_example_warns_in_the_name_of_its_caller():
    layer = S4ND(2, d_state=4)
    with pytest.warns(DeprecationWarning, match=r"deprecated since 0\.2 and will be removed in 0\.4: use") as found:
        example("set_band")(layer, 0.5)
    assert layer.bandlimit == 0.5 and found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s4nd.set_bandlimit(layer, 0.3)


def test_what_it_tells_to_run_and_to_read_is_there():
    names = {entry["name"] for entry in yaml.safe_load((ROOT / "tests/mutations.yaml").read_text(encoding="utf-8"))}
    assert set(re.findall(r'mutate\.py --only "(.*?)"', TEXT)) <= names
    paths = re.findall(r"`((?:s4nd|models|train|tests|tools|examples|\.ci)(?:/[\w.]+)*/?)`", TEXT)
    assert len(paths) > 15 and [path for path in paths if not (ROOT / path).exists() and path != "s4nd"] == []
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests/nn/kernels").glob("test_*.py"))
    named = re.findall(r"`((?:test|dense)_\w+)`", TEXT)
    assert len(named) == 2 and [name for name in named if f"def {name}(" not in tests] == []
