"""A checkout in which git has made no symbolic links, against what its first import says."""

import importlib.machinery
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from s4nd import _checkout
from s4nd._checkout import check_links

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("models", "train")


@pytest.fixture
def without_links(tmp_path):
    """The folder of a checkout as `git -c core.symlinks=false clone` leaves it."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "s4nd", copy / "s4nd", ignore=shutil.ignore_patterns("__pycache__", *NAMES))
    for name in NAMES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "weights"))
        (copy / "s4nd" / name).write_text(f"../{name}")
    return copy


@pytest.fixture
def find(monkeypatch):
    """find(name, folder): Python finds s4nd.NAME in the folder, as an editable installation makes it."""

    def find(*found):
        specs = {
            f"s4nd.{name}": importlib.machinery.ModuleSpec(name, None, origin=str(folder / "__init__.py"))
            for name, folder in found
        }
        monkeypatch.setattr(_checkout, "find_spec", specs.get)

    return find


@pytest.mark.parametrize("name", NAMES)
def test_links_of_the_repository_are_links(name):
    if not (ROOT / "s4nd" / name).is_symlink():
        pytest.skip("git has made no symbolic links in this checkout")
    assert os.readlink(ROOT / "s4nd" / name) == f"../{name}"


def test_import_from_a_checkout_without_links_says_what_to_do(without_links, tmp_path):
    """Whatever else is installed: not the models of another copy of s4nd."""
    code = "import s4nd.models"
    env = os.environ | {"PYTHONPATH": str(without_links)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    error = done.stderr[done.stderr.index("ImportError: ") :].splitlines()
    assert error[0].startswith(
        f"ImportError: {without_links / 's4nd' / 'models'} is a file: in this checkout git has made"
    )
    said = " ".join(error)
    assert "git config core.symlinks true" in said and "git checkout -- s4nd/models s4nd/train" in said
    assert "pip install -e ." in said


def test_one_file_in_place_of_a_link_is_enough(without_links, find):
    (without_links / "s4nd" / "models").unlink()
    find()
    with pytest.raises(ImportError, match=r"s4nd.train is a file: in this checkout"):
        check_links(without_links / "s4nd")


def test_nothing_is_said_where_the_folders_are_found(without_links, find):
    find(*((name, without_links / name) for name in NAMES))
    check_links(without_links / "s4nd")
    find(*((name, ROOT / name) for name in NAMES))
    with pytest.raises(ImportError, match=r"s4nd.models is a file"):
        check_links(without_links / "s4nd")


def test_folders_and_a_package_without_them_are_no_fault(tmp_path, find):
    """A wheel has folders; the layer alone, copied elsewhere, has neither models nor training."""
    find()
    check_links(ROOT / "s4nd")
    check_links(tmp_path)
