"""The wheel, installed in an environment of its own, against the promise that s4nd works without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import timm
import torch

import s4nd.models  # noqa: F401  registers S4ND's models with timm

ROOT = Path(__file__).resolve().parents[1]
PACKAGING = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "s4nd", "models", "train"]
IMPORT_ALL = """
import importlib, pkgutil, s4nd
names = ["s4nd", *(m.name for m in pkgutil.walk_packages(s4nd.__path__, "s4nd."))]
for name in names:
    print(name, importlib.import_module(name).__file__)
"""

PRETRAINED = """
import json, timm, torch, s4nd.models
models = {name: timm.create_model(name, pretrained=True).eval() for name in timm.list_pretrained("s4nd*")}
print(json.dumps({name: [m.pretrained_cfg["file"], m(torch.ones(1, 3, 8, 8))[0].tolist()] for name, m in models.items()}))
"""

pytestmark = pytest.mark.slow


def run(*command, cwd):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy to build from: a build leaves files behind that a later one would pack again."""
    source = tmp_path_factory.mktemp("sources") / "source"
    source.mkdir()
    for name in PACKAGING:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
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


def test_wheel_and_source_distribution_hold_the_weights_and_their_cards(wheel, source, tmp_path):
    shipped = {f"s4nd/models/weights/{path.name}" for path in (ROOT / "models/weights").iterdir()}
    assert len(shipped) == 4 and shipped <= set(zipfile.ZipFile(wheel).namelist())
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path, cwd=source)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as tar:
        assert shipped <= {name.partition("/")[2] for name in tar.getnames()}


def test_weights_load_from_the_installed_package_and_answer_as_here(installed, tmp_path):
    found = json.loads(run(installed / "bin/python", "-c", PRETRAINED, cwd=tmp_path))
    assert {*found} == {*timm.list_pretrained("s4nd*")} and len(found) == 2
    for name, (file, logits) in found.items():
        assert Path(file).is_relative_to(installed)
        with torch.no_grad():
            expected = timm.create_model(name, pretrained=True).eval()(torch.ones(1, 3, 8, 8))[0]
        # Roundings of another number of threads.
        torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_everything_imports_from_an_empty_directory(installed, tmp_path):
    printed = run(installed / "bin/python", "-c", IMPORT_ALL, cwd=tmp_path)
    files = dict(line.split(" ", 1) for line in printed.splitlines())
    assert {"s4nd", "s4nd.models", "s4nd.train", "s4nd.train.cli"} <= set(files)
    assert [file for file in files.values() if not file.startswith(str(installed))] == []


def test_console_script_tells_the_version(wheel, installed, tmp_path):
    assert run(installed / "bin/s4nd", "--version", cwd=tmp_path) == f"s4nd {wheel.name.split('-')[1]}\n"
