"""The wheel, installed in an environment of its own, against the promise that s4nd works without the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGING = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "s4nd", "models", "train"]
IMPORT_ALL = """
import importlib, pkgutil, s4nd
names = ["s4nd", *(m.name for m in pkgutil.walk_packages(s4nd.__path__, "s4nd."))]
for name in names:
    print(name, importlib.import_module(name).__file__)
"""

pytestmark = pytest.mark.slow


def run(*command, cwd):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: a build leaves files behind that a later one would pack again."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in PACKAGING:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    run(*pip, "--wheel-dir", folder, source, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Folder of a virtual environment: the wheel's own files, and this environment's packages for its dependencies."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    run(folder / "bin/python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file has its own .pth files ignored, an editable install of the checkout among them.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def test_wheel_holds_one_top_level_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"s4nd"}
    sources = {p.relative_to(ROOT).as_posix() for top in ("models", "train") for p in (ROOT / top).rglob("*.py")}
    assert {f"s4nd/{source}" for source in sources} <= set(names)


def test_everything_imports_from_an_empty_directory(installed, tmp_path):
    printed = run(installed / "bin/python", "-c", IMPORT_ALL, cwd=tmp_path)
    files = dict(line.split(" ", 1) for line in printed.splitlines())
    assert {"s4nd", "s4nd.models", "s4nd.train", "s4nd.train.cli"} <= set(files)
    assert [file for file in files.values() if not file.startswith(str(installed))] == []


def test_console_script_tells_the_version(wheel, installed, tmp_path):
    assert run(installed / "bin/s4nd", "--version", cwd=tmp_path) == f"s4nd {wheel.name.split('-')[1]}\n"
