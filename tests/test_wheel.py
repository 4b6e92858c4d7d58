"""What a release is: the source distribution and its wheel, installed in an environment of its own and used from empty folders,
against the promise that s4nd works without the checkout, and comes of one that has no symbolic links."""

import json
import os
import re
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
from packaging.metadata import Metadata

import s4nd.models  # registers S4ND's models with timm

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"]
PACKAGING = ["setup.py", "pyproject.toml", "MANIFEST.in", *PAGES, "s4nd", "models", "train", "examples"]
LINKS = ("models", "train")
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

# The package as a program of a user's, which knows by timm alone what the models are.
KNOWN = "import timm; print(*timm.list_pretrained('s4nd*'))"

# A training of a moment on the photographs, which begins with weights that ship.
SMALL = """
data: {name: photos, train_limit: 96, test_limit: 64}
model: {name: s4nd_iso_tiny}
init: {weights: s4nd_iso_tiny.photos}
stages: [{size: 16, epochs: 2}]
schedule: {warmup_epochs: 0}
batch_size: 32
device: cpu
out: run
"""

pytestmark = pytest.mark.slow


def run(*command, cwd):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(hook, source, folder):
    """What `python -m build` and pip ask the build backend for: sdist or editable. The path of the file that it makes."""
    code = f"import setuptools.build_meta as backend; backend.build_{hook}({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=source)
    (path,) = folder.iterdir()
    return path


def names_in(sdist):
    """Paths in a source distribution, below its one folder; what is not a file or folder is refused."""
    with tarfile.open(sdist) as tar:
        assert all(member.isfile() or member.isdir() for member in tar)
        return {member.name.partition("/")[2] for member in tar if member.isfile()}


def copied(folder, links):
    """A copy to build from: a build leaves files behind that a later one would pack again."""
    source = folder / "source"
    source.mkdir()
    for name in PACKAGING:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    for name in () if links else LINKS:  # as git leaves them where it makes no symbolic links
        (source / "s4nd" / name).unlink()
        (source / "s4nd" / name).write_text(f"../{name}")
    (source / "tests").mkdir()
    (source / "tests" / "test_of_the_checkout.py").touch()
    return source


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkout without symbolic links."""
    return copied(tmp_path_factory.mktemp("sources"), links=False)


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    run(*pip, "--wheel-dir", folder, sdist, cwd=folder)
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


def test_wheel_and_source_distribution_hold_the_weights_and_their_cards(wheel, sdist):
    shipped = {f"models/weights/{path.name}" for path in (ROOT / "models/weights").iterdir()}
    assert len(shipped) == 4 and shipped <= names_in(sdist)
    assert {f"s4nd/{name}" for name in shipped} <= set(zipfile.ZipFile(wheel).namelist())


def test_source_distribution_is_the_same_whether_or_not_the_checkout_has_links(sdist, tmp_path):
    (tmp_path / "dist").mkdir()
    names = names_in(build("sdist", copied(tmp_path, links=True), tmp_path / "dist"))
    assert names == names_in(sdist)
    assert {"README.md", "LICENSE", "s4nd/nn/s4nd.py", "models/__init__.py", "train/commands/doctor/trial.py"} <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.py")} <= names
    assert [name for name in names if name.startswith("tests/")] == []


def check_page_of_an_index(page, readme):
    """The README without what an index cannot show: every link leads out of the repository, and no word is lost."""
    relative = re.compile(r"(!?)\[([^\]]*)\]\((?!https://)([^)]*)\)")
    assert len(relative.findall(readme)) > 10 and not relative.search(page)
    for mark, text, _ in relative.findall(readme):
        assert (f"*Figure, in the repository: {text}.*" if mark else text) in page
    assert re.findall(r"\]\((https://[^)]*)\)", page) == re.findall(r"\]\((https://[^)]*)\)", readme)
    assert re.findall(r"^(?:#|```).*", page, re.MULTILINE) == re.findall(r"^(?:#|```).*", readme, re.MULTILINE)


def test_metadata_are_valid_and_say_what_the_page_of_a_package_shows(wheel, sdist):
    """What `twine check` asks for, by the rules of the specification: each field is parsed as its version of it says."""
    folder = "-".join(wheel.name.split("-")[:2])
    raw = zipfile.ZipFile(wheel).read(f"{folder}.dist-info/METADATA")
    about = Metadata.from_email(raw, validate=True)
    assert about.description_content_type == "text/markdown"
    check_page_of_an_index(about.description.strip(), (ROOT / "README.md").read_text(encoding="utf-8").strip())
    assert (about.name, str(about.version)) == ("s4nd", s4nd.__version__)
    assert (about.license_expression or about.license) == "Apache-2.0"
    assert about.summary and about.author and "Typing :: Typed" in about.classifiers
    assert sdist.name == f"{folder}.tar.gz"
    assert {"CHANGELOG.md", "CITATION.cff"} <= names_in(sdist)


def test_wheel_says_that_it_has_types(wheel):
    """PEP 561: the marker in the topmost package is for all below it."""
    assert "s4nd/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_editable_installation_needs_no_links(source, tmp_path):
    """In a process that knows no other installation: -S leaves the .pth files of the environment unread."""
    (tmp_path / "wheel").mkdir()
    zipfile.ZipFile(build("editable", source, tmp_path / "wheel")).extractall(tmp_path / "site")
    imports = (
        "import site, sys; site.addsitedir({!r}); sys.path.append({!r}); import s4nd.train; print(s4nd.train.__file__)"
    )
    code = imports.format(str(tmp_path / "site"), sysconfig.get_path("purelib"))
    assert run(sys.executable, "-I", "-S", "-c", code, cwd=tmp_path) == f"{source / 'train' / '__init__.py'}\n"


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


def test_commands_run_from_an_empty_directory_and_know_what_ships(installed, tmp_path):
    tags = timm.list_pretrained("s4nd*")
    listed = run(installed / "bin/s4nd", "models", "--pretrained", cwd=tmp_path).splitlines()
    assert [line.split()[0] for line in listed[1:]] == tags
    (tmp_path / "script.py").write_text(KNOWN)
    assert run(installed / "bin/python", "-m", "s4nd.models", "script.py", cwd=tmp_path).split() == tags


def test_doctor_finds_the_installation_whole(installed, tmp_path):
    *lines, last = run(installed / "bin/s4nd", "doctor", cwd=tmp_path).splitlines()
    package = next(installed.glob("lib/python*/site-packages/s4nd"))
    assert f"in {package}; a model runs at two sizes" in next(line for line in lines if " s4nd: " in line)
    assert last == "0 faults"


def test_shipped_weights_of_the_installed_package_answer_as_their_cards_say(installed, tmp_path):
    """The tests of the weights themselves, run where the checkout is not."""
    shutil.copy(ROOT / "tests/models/test_shipped.py", tmp_path)
    options = ["-q", "-p", "no:cacheprovider", "-k", "not cifar10_is_answered"]  # whose images are no package's
    printed = run(installed / "bin/python", "-m", "pytest", *options, "test_shipped.py", cwd=tmp_path)
    assert re.search(r"^\d\d passed, 1 deselected", printed.splitlines()[-1])


def test_training_and_evaluation_run_from_an_empty_directory(installed, tmp_path):
    pytest.importorskip("skimage", reason="needs the extra: pip install 's4nd[demo]'")
    (tmp_path / "small.yaml").write_text(SMALL)
    run(installed / "bin/s4nd", "train", "small.yaml", cwd=tmp_path)
    assert {"best.safetensors", "last.safetensors"} <= {path.name for path in (tmp_path / "run").iterdir()}
    printed = run(installed / "bin/s4nd", "eval", "run/last.safetensors", "--sizes", 16, 24, "--control", cwd=tmp_path)
    accuracies = [float(number) for number in re.findall(r"\b\d+\.\d\b", printed)]
    assert (
        sum(accuracy > 50 for accuracy in accuracies) >= 4
    )  # model and control at two sizes: it began with the weights
