"""Import statements against the one-way rule of the layers, and `import s4nd` against what it loads."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# package -> packages of this project that it may import; the longest name that fits a module decides.
LAYERS = {
    "s4nd.ops": {"s4nd.ops"},
    "s4nd.ssm": {"s4nd.ssm", "s4nd.ops"},
    "s4nd.conv": {"s4nd.conv", "s4nd.ops"},
    "s4nd.nn": {"s4nd.nn", "s4nd.conv", "s4nd.ssm", "s4nd.ops"},
    "s4nd": {"s4nd", "s4nd.nn", "s4nd.conv", "s4nd.ssm", "s4nd.ops"},
    "s4nd.models": {"s4nd.models", "s4nd", "s4nd.nn", "s4nd.conv", "s4nd.ssm", "s4nd.ops"},
    "s4nd.train": {"s4nd.train", "s4nd.models", "s4nd", "s4nd.nn", "s4nd.conv", "s4nd.ssm", "s4nd.ops"},
}
LIGHT = {"torch", "numpy", "einops"}  # all that the layer itself needs
THIRD_PARTY = {layer: LIGHT for layer in LAYERS}
THIRD_PARTY |= {"s4nd.models": LIGHT | {"timm", "torchvision", "safetensors"}, "s4nd.train": None}
NEVER = {
    "tools",
    "examples",
    "tests",
    "models",
    "train",
}  # scripts, tests, and packages under a name that is not theirs
BACKENDS = {"triton", "pykeops"}  # inside functions of s4nd/ops/_*.py and nowhere else, but:
# Triton compiles decorated functions, so a module of them imports it at its top, and is itself imported inside functions only.
DECORATED = re.compile(r"s4nd\.(ops|conv)\._triton\w*")
SOURCES = {
    path.relative_to(ROOT): ".".join(("s4nd" if top == "s4nd" else f"s4nd.{top}", *path.relative_to(ROOT).parts[1:]))
    for top in ("s4nd", "models", "train")
    for path in sorted((ROOT / top).rglob("*.py"))
    if top != "s4nd" or path.relative_to(ROOT).parts[1] not in ("models", "train")  # the symlinks
}


def layer_of(module):
    """The longest name in LAYERS that module is, or lies in."""
    return max((name for name in LAYERS if f"{module}.".startswith(f"{name}.")), key=len)


def imports(tree, module, is_package):
    """(absolute module name, inside a function) of every import statement; `from a import b` counts as a.b too."""
    nested = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in nested) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = node.module or ""
            if node.level:
                parts = module.split(".")
                base = parts[: len(parts) - node.level + is_package]
                name = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{name}.{alias.name}", node in nested) for alias in node.names)


def violations(source, module, is_package=False):
    """What in the source text of `module` breaks the rule, one line each."""
    layer, found = layer_of(module), []
    is_backend = layer == "s4nd.ops" and module.rpartition(".")[2].startswith("_")
    is_decorated = bool(DECORATED.fullmatch(module))
    for name, in_function in imports(ast.parse(source), module, is_package):
        top = name.partition(".")[0]
        if top in BACKENDS:
            allowed = (is_backend and in_function) or (top == "triton" and is_decorated)
        elif DECORATED.match(name):
            allowed = (in_function or is_decorated) and layer_of(name) in LAYERS[layer]
        elif top == "s4nd":
            allowed = layer_of(name) in LAYERS[layer]
        elif top in NEVER:
            allowed = False
        else:
            allowed = top in sys.stdlib_module_names or THIRD_PARTY[layer] is None or top in THIRD_PARTY[layer]
        if not allowed:
            found.append(f"{module} ({layer}) imports {name}")
    return found


def run(code, cwd=ROOT):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_run_one_way(path):
    module = SOURCES[path].removesuffix(".py").removesuffix(".__init__")
    assert violations((ROOT / path).read_text(encoding="utf-8"), module, path.name == "__init__.py") == []


def test_every_layer_has_sources():
    assert {layer_of(name.removesuffix(".py").removesuffix(".__init__")) for name in SOURCES.values()} == set(LAYERS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("s4nd.ops.vandermonde", "from s4nd.ssm import dplr"),
        ("s4nd.ssm.dplr", "from s4nd import conv"),
        ("s4nd.conv.fft", "from ..nn.kernel import Kernel"),
        ("s4nd.conv.fft", "from s4nd import S4ND"),
        ("s4nd.nn.s4nd", "import timm"),
        ("s4nd.nn.s4nd", "def f():\n    import triton"),
        ("s4nd.ops._keops", "import pykeops"),
        ("s4nd.ops._keops", "import triton"),
        ("s4nd.conv._triton", "import pykeops"),
        ("s4nd.conv.own", "import s4nd.conv._triton"),
        ("s4nd.ops.dispatch", "def f():\n    import s4nd.conv._triton"),
        ("s4nd.ops.vandermonde", "def f():\n    from pykeops.torch import LazyTensor"),
        ("s4nd.models.s4nd_iso", "from s4nd.train import engine"),
        ("s4nd.models.s4nd_iso", "import omegaconf"),
        ("s4nd.train.cli", "import triton"),
        ("s4nd.train.cli", "from tools import plot"),
        ("s4nd.train.cli", "import models"),
    ],
)
def test_rule_catches(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("s4nd.ops._keops", "def f():\n    from pykeops.torch import LazyTensor"),
        ("s4nd.ops._triton", "import triton\nimport triton.language as tl"),
        ("s4nd.conv._triton_axes", "import triton\nimport s4nd.conv._triton"),
        ("s4nd.conv.own", "def f():\n    import s4nd.conv._triton"),
        ("s4nd.nn.s4nd", "import math\nfrom s4nd.ssm.dplr import dplr_kernel\nfrom .kernel import Kernel"),
        ("s4nd.models.s4nd_iso", "import timm\nfrom s4nd import S4ND\nfrom .isotropic import Isotropic"),
        ("s4nd.train.cli", "import omegaconf\nimport s4nd.models"),
    ],
)
def test_rule_lets_through(module, source):
    assert violations(source, module) == []


def test_import_s4nd_is_light():
    """Beyond what torch itself loads."""
    done = run("import sys, torch; before = set(sys.modules); import s4nd; print(*sorted(set(sys.modules) - before))")
    assert done.returncode == 0, done.stderr
    added = {name.partition(".")[0] for name in done.stdout.split()}
    heavy = {"timm", "torchvision", "omegaconf", "tensorboard", "matplotlib", "skimage", "av"}
    assert "s4nd" in added
    assert added & (BACKENDS | heavy) == set()


@pytest.mark.parametrize("name", ["models", "train"])
def test_folder_under_another_name_is_refused(name):
    done = run(f"import {name}")
    assert done.returncode != 0
    assert f"ImportError: this package is s4nd.{name}, got imported as '{name}'" in done.stderr


def is_public(name):
    """A package, or a name that the `__all__` of a public package or module has."""
    package, _, leaf = name.rpartition(".")
    if name in ("s4nd", "s4nd.models", "s4nd.train"):
        return True
    return is_public(package) and leaf in getattr(importlib.import_module(package), "__all__", ()) if package else False


def private_names(source):
    """What of s4nd a script imports or looks up that may change without notice."""
    tree = ast.parse(source)
    names = {name for name, _ in imports(tree, "script", False)}
    names |= {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return sorted(name for name in names if f"{name}.".startswith("s4nd.") and not is_public(name))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_use_public_names_alone(path):
    assert private_names(path.read_text(encoding="utf-8")) == []


def test_private_names_are_found():
    source = "import s4nd.models\nfrom s4nd.nn.resolution import layers\ns4nd.models.stream(s4nd.nn.kept)"
    assert private_names(source) == ["s4nd.nn", "s4nd.nn.kept", "s4nd.nn.resolution.layers"]
    assert private_names("from s4nd.train.data import Photos\nimport s4nd\ns4nd.S4ND(3)") == []
