"""What S4ND_REQUIRE_ALL promises of the suite: a test that skips for want of a package, data or a platform fails instead."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NOTHING_TO_TEST

ROOT = Path(__file__).resolve().parents[1]
SKIPS = """
import pytest

def test_package():
    pytest.importorskip("a_package_that_nobody_has")

@pytest.mark.skipif(True, reason="needs a_thing")
def test_thing():
    pass

@pytest.fixture
def data():
    pytest.skip("needs data beside the checkout")

def test_data(data):
    pass

def test_nothing():
    pytest.skip("s4 has no modes to fold")

@pytest.mark.xfail(strict=True)
def test_fault():
    assert False
"""
MODULE = 'import pytest\n\npytest.importorskip("a_package_that_nobody_has")\n\n\ndef test():\n    pass\n'


def outcomes(tmp_path, **env):
    """{outcome: count} of the two files' tests, run by a pytest of its own with the hooks of this suite."""
    (tmp_path / "test_skips.py").write_text(SKIPS)
    (tmp_path / "test_module.py").write_text(MODULE)
    env = {k: v for k, v in os.environ.items() if k != "S4ND_REQUIRE_ALL"} | {"PYTHONPATH": str(ROOT)} | env
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    options = ["--continue-on-collection-errors", f"--rootdir={tmp_path}", "-c", os.devnull, "."]
    done = subprocess.run([*command, *options], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    counted = re.findall(r"(\d+) (\w+?)s?(?=[, ])", done.stdout.splitlines()[-1])
    return {what: int(count) for count, what in counted}, done.stdout


def test_what_is_missing_skips_where_it_need_not_be_there(tmp_path):
    assert outcomes(tmp_path)[0] == {"skipped": 5, "xfailed": 1}


def test_what_is_missing_fails_with_its_reason_where_all_must_be_there(tmp_path):
    found, printed = outcomes(tmp_path, S4ND_REQUIRE_ALL="1")
    assert found == {"failed": 1, "error": 3, "skipped": 1, "xfailed": 1}  # skips before the test itself are errors
    for reason in ("could not import 'a_package_that_nobody_has'", "needs a_thing", "needs data beside the checkout"):
        assert f"S4ND_REQUIRE_ALL is set, and this skips: {reason}" in printed


@pytest.mark.parametrize("reason", sorted(NOTHING_TO_TEST))
def test_reasons_that_are_allowed_are_given_by_a_test(reason):
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert any(f'"{reason}"' in text for text in texts)
