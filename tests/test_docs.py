"""README and docs: blocks of Python run, commands are parsed by the programs that they call, names are there."""

import argparse
import importlib
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml

import s4nd.models  # noqa: F401  registers S4ND's models with timm
from s4nd.train.checkpoint import Meta, save_checkpoint
from s4nd.train.cli import main
from s4nd.train.config import load_config
from s4nd.train.model import build_model

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What the blocks of a page use and do not define.
STAND_INS = {
    "docs/guide/layer.md": {
        "video": "torch.randn(1, 96, 3, 8, 8)",
        "model": "timm.create_model('s4nd_iso_tiny', embed_dim=8, depth=2, d_state=4).eval()",
        "loader": "[torch.randn(1, 3, 16, 16), torch.randn(1, 3, 24, 24)]",
    },
}


def checkpoint(path):
    """Of `s4nd train` on the photographs, of a model as drawn."""
    path.parent.mkdir(parents=True)
    config = load_config(ROOT / "configs/photos/s4nd_iso_tiny.yaml")
    meta = Meta(epoch=1, stage=0, accuracy=0.5, classes=[str(i) for i in range(14)], weights="model")
    save_checkpoint(path, build_model(config, 14).state_dict(), config, meta)


def config(path):
    """Of a training of a moment."""
    small = [
        f"base: {ROOT / 'configs/photos/conv_iso_tiny.yaml'}",
        "model: {args: {embed_dim: 8, depth: 1}}",
        "data: {train_limit: 32, test_limit: 32}",
        "stages: [{size: 8}]",
        "schedule: {warmup_epochs: 0}",
        "device: cpu",
    ]
    path.write_text("\n".join(small))


def reference(path):
    """An isotropic network as the reference implementation saves it."""
    with np.load(ROOT / "tests/golden/iso2d_s4nd.npz", allow_pickle=False) as arrays:
        state = {key[6:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("state/")}
    torch.save({"state_dict": state}, path)


# Files that the blocks of a page read.
FILES = {
    "docs/guide/deployment.md": {"runs/NAME/best.safetensors": checkpoint},
    "docs/guide/images.md": {"runs/NAME/best.safetensors": checkpoint},
    "docs/guide/neighbours.md": {"runs/NAME/best.safetensors": checkpoint},
    "docs/guide/training.md": {"CONFIG.yaml": config},
    "docs/migration.md": {"REFERENCE.ckpt": reference},
}
# Packages that the blocks of a page need beside the library's own.
NEEDED = {
    "docs/guide/deployment.md": ("onnx", "onnxscript", "onnxruntime"),
    "docs/guide/neighbours.md": (
        "transformers",
        "segmentation_models_pytorch",
        "pytorch_grad_cam",
        "captum",
        "torchao",
        "skimage",
    ),
    "docs/guide/training.md": ("skimage",),
}
# Blocks that are not run: {(page, number of the block): why}.
NOT_RUN: dict[tuple[str, int], str] = {}


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    return [text for found, text in FENCE.findall(read(page)) if found == language]


def pages_with(language):
    return [page for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_language_that_is_checked(page):
    assert read(page).count("\n```") == 2 * len(FENCE.findall(read(page)))
    assert {language for language, _ in FENCE.findall(read(page))} <= {"python", "sh", "yaml", "text"}


@pytest.mark.parametrize("page", pages_with("python"))
@pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is (deprecated|not supported):FutureWarning")
@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning:captum")
def test_blocks_of_python_run_one_after_the_other(page, tmp_path, monkeypatch):
    for package in NEEDED.get(page, ()):
        pytest.importorskip(package, reason=f"blocks of {page} need {package}")
    monkeypatch.chdir(tmp_path)
    for name, make in FILES.get(page, {}).items():
        make(tmp_path / name)
    torch.manual_seed(0)
    namespace = {"__name__": "page"}
    for name, expression in STAND_INS.get(page, {}).items():
        namespace[name] = eval(expression, {"timm": timm, "torch": torch})
    for number, block in enumerate(blocks(page, "python")):
        if (page, number) not in NOT_RUN:
            exec(compile(block, f"{page}, block {number}", "exec"), namespace)


def test_tables_of_this_test_are_of_blocks_that_exist():
    assert {*STAND_INS, *FILES, *NEEDED} <= {*pages_with("python")}
    for page, number in NOT_RUN:
        assert number < len(blocks(page, "python"))
    for page, names in STAND_INS.items():
        assert all(re.search(rf"\b{name}\b", block) for name in names for block in ["".join(blocks(page, "python"))])


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_blocks_of_yaml_are_configs(page, tmp_path):
    for block in blocks(page, "yaml"):
        path = tmp_path / "config.yaml"
        path.write_text(f"base: {ROOT / 'configs/photos/s4nd_iso_tiny.yaml'}\n{block}", encoding="utf-8")
        load_config(path)


# Commands


class Parsed(Exception):
    """A program has parsed its arguments, and is not to go on."""


@pytest.fixture
def parse(monkeypatch):
    """parse(program, argv) -> the arguments as the program itself parses them; it is stopped there."""

    def stopping(method):
        def parse(parser, args=None, namespace=None):
            raise Parsed(method(parser, args, namespace))

        return parse

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))
    monkeypatch.syspath_prepend(str(ROOT / "tools"))

    def parse(program, argv):
        try:
            if program == "s4nd":
                main(argv)
            else:
                monkeypatch.setattr(sys, "argv", [program, *argv])
                runpy.run_path(str(ROOT / program), run_name="__main__")
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit:
            pytest.fail(f"{program} does not take {' '.join(argv)}")
        pytest.fail(f"{program} parses no arguments")

    return parse


def commands(page):
    """The words of every command of the page's shell blocks, as bash expands them, without the variables before it."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            assert not set("$;|&`<>") & set(line.partition(" #")[0]), f"more than a command: {line}"
            done = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
            words = done.stdout.splitlines()
            while re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            yield words


def program_of(words):
    """(program, its arguments): "s4nd", a file of tools/ or examples/, or the first word."""
    if words[0] == "torchrun":
        module = words.index("-m")
        start, rest = words[1:module], words[module + 2 :]
        assert all(word.startswith("--") or word[0].isalnum() for word in start)
        return "s4nd", {"s4nd.train": ["train", *rest], "s4nd.train.cli": rest}[words[module + 1]]
    if words[0] == "python":
        return words[1], words[2:]
    return words[0], words[1:]


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
ANY = {"CONFIG": "configs/photos/s4nd_iso_tiny.yaml"}  # a reader's own file
ANY_RUN = "runs/NAME"


def check_training(args, runs):
    """The config loads with what the command sets, and `runs` has its directory from now on."""
    runs.add(load_config(ROOT / ANY.get(args.config, args.config), args.overrides).out)


def runs_of(args):
    """The run directories whose files a command of s4nd reads."""
    given = [*getattr(args, "checkpoints", ()), *getattr(args, "runs", ()), getattr(args, "checkpoint", None)]
    return [re.sub(r"/(best|last)\.safetensors$", "", path) for path in given if path]


@pytest.fixture(scope="module")
def trained():
    """The run directories of the configs."""
    return {load_config(path).out for path in CONFIGS}


@pytest.mark.parametrize("page", pages_with("sh"))
def test_commands_are_taken_by_the_programs_they_call(page, parse, trained):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    runs = trained | {ANY_RUN}
    for words in commands(page):
        program, argv = program_of(words)
        if program == "make":
            assert {*argv} <= {*targets}
        elif program == "pip":
            assert argv[:2] == ["install", "-e"] and re.fullmatch(r"\.\[(\w+)\]", argv[2])[1] in extras()
        elif program == "s4nd":
            args = parse(program, argv)
            if argv[0] == "train":
                check_training(args, runs)
            if argv[0] == "convert":
                assert timm.is_model(args.model)
            assert {*runs_of(args)} <= runs, f"no command before trains these: {' '.join(words)}"
        else:
            assert re.fullmatch(r"(tools|examples)/\w+\.py", program), f"no way to check {' '.join(words)}"
            args = parse(program, argv)
            if program == "tools/bench_processes.py":
                load_config(ROOT / args.config, args.overrides)
        for word in argv:
            name = word.rpartition("=")[2]
            if re.match(
                r"(configs|docs|tools|examples|tests)/", name
            ):  # of what is written the folder, or what it begins with
                assert [*ROOT.glob(f"{name}*")], f"no {name}: {' '.join(words)}"


def extras():
    """{extra: its requirements} of setup.py."""
    (found,) = re.findall(r"extras_require=(\{.*?\n    \}),", (ROOT / "setup.py").read_text(), re.DOTALL)
    return eval(found)


def test_table_of_extras_is_that_of_the_package():
    assert re.findall(r"^\| `(\w+)` \|", read("docs/guide/install.md"), re.MULTILINE) == [*ordered(extras())]


def ordered(names):
    """As the table has them: first what runs, then what only the house needs."""
    first = ["demo", "video", "onnx", "keops", "wds", "hf", "wandb", "examples", "dev", "docs"]
    assert {*first} == {*names}
    return first


# Names

PATH = re.compile(r"`((?:s4nd|models|train|tests|tools|examples|configs|docs)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_the_text_exist(page):
    assert [name for name in PATH.findall(FENCE.sub("", read(page))) if not [*ROOT.glob(f"{name}*")]] == []


def documented(page):
    """The identifiers that mkdocstrings is asked for."""
    return re.findall(r"^::: ([\w.]+)$", read(page), re.MULTILINE)


def resolved(identifier):
    parts = identifier.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for name in parts[i:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"nothing of the name {identifier}")


PACKAGES = ["s4nd", "s4nd.nn", "s4nd.ssm", "s4nd.conv", "s4nd.ops", "s4nd.models", "s4nd.train"]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_of_a_package_are_on_its_page(package):
    page = f"docs/api/{package.rpartition('.')[2]}.md"
    shown = [resolved(name) for name in documented(page)]
    elsewhere = [] if package == "s4nd" else [resolved(name) for name in documented("docs/api/s4nd.md")]
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    missing = [
        name
        for name, thing in public.items()
        if not inspect.ismodule(thing) and not any(thing is other for other in [*shown, *elsewhere])
    ]
    assert missing == [], f"{page} needs `::: {package}.NAME` of them"


def test_registered_models_are_on_the_page_of_models():
    shown = {name.rpartition(".")[2] for name in documented("docs/api/models.md")}
    ours = {name for name in timm.list_models() if timm.models.model_entrypoint(name).__module__.startswith("s4nd.")}
    assert len(ours) > 20 and ours <= shown


def test_navigation_has_every_page():
    tree = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def leaves(node):
        if isinstance(node, str):
            return [node]
        return [leaf for child in (node.values() if isinstance(node, dict) else node) for leaf in leaves(child)]

    assert sorted(leaves(tree)) == sorted(page.removeprefix("docs/") for page in PAGES if page.startswith("docs/"))


def test_readme_is_short():
    assert len(read("README.md").splitlines()) <= 250
