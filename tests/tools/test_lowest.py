"""The constraints of `make lowest` against the requirements of setup.py that they come of."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "lowest.py"


@pytest.fixture
def lowest():
    return runpy.run_path(str(TOOL), run_name="tool")["lowest"]


def setup(*requirements):
    return f"from setuptools import setup\n\nsetup(name='x', install_requires={[*requirements]}, extras_require={{}})\n"


def test_every_requirement_has_its_lower_bound_as_its_version(lowest):
    assert lowest(setup("torch>=2.7", "a-b>=1.0.31")) == ["torch==2.7", "a-b==1.0.31"]


@pytest.mark.parametrize("requirement", ["torch", "torch==2.7", "torch>=2.7,<3", 'torch>=2.7; python_version > "3"'])
def test_a_requirement_of_another_form_is_refused(lowest, requirement):
    with pytest.raises(ValueError, match=r"install_requires must be names with a lower bound, got 'torch"):
        lowest(setup("numpy>=1.26", requirement))


def test_they_are_those_of_this_package_and_need_nothing_installed(tmp_path):
    """-S: without site-packages."""
    done = subprocess.run([sys.executable, "-I", "-S", TOOL], cwd=tmp_path, capture_output=True, text=True, check=True)
    wanted = (ROOT / "setup.py").read_text(encoding="utf-8").split("install_requires=[")[1].split("]")[0]
    assert done.stdout.splitlines() == [text.replace(">=", "==") for text in wanted.split('"')[1::2]]
    assert {"torch", "timm", "numpy", "einops"} <= {line.split("==")[0] for line in done.stdout.splitlines()}
