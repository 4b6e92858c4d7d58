"""The names of the packages against one rule of what is public.

A name is public, and stays, if the `__all__` of its package has it, or that of a module that its package's `__all__` has.
Everything else is shared between the files of this repository at most:

- every package has `__all__`, and all of it is there;
- what a package's `__init__` defines, or takes from this project, is in its `__all__` or begins with an underscore;
- a function or class of any module is public, or used by another file (tools and tests are files too), or what one of those
  says that it takes or gives, or begins with an underscore. Modules that begin with one may name theirs as they like.
  torch.nn.Modules keep plain names, which pickles and printed models show, and so does what is registered by its name with
  timm or torch.fx.

Constants of a module, in capitals, are its settings, and no names to import unless a package's `__all__` has them.
"""

import ast
import importlib
import inspect
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
REGISTERED = {"register_model", "torch.fx.wrap"}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(path):
    """models/hold.py -> s4nd.models.hold, s4nd/nn/__init__.py -> s4nd.nn."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "s4nd" else ("s4nd", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


LINKS = {ROOT / "s4nd" / name for name in ("models", "train")}
SOURCES = {
    module_name(path): path
    for top in ("s4nd", "models", "train")
    for path in sorted((ROOT / top).rglob("*.py"))
    if not LINKS & set(path.parents) and path.name != "__main__.py"
}
PACKAGES = [name for name, path in SOURCES.items() if path.name == "__init__.py"]


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree, module="", is_package=False):
    """{name that the file gives it: what is imported, with its module} of all import statements, relative ones resolved."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names}
    return found


def defined(tree):
    """{name: decorators} of the functions and classes of a module."""
    nodes = [n for n in tree.body if isinstance(n, FUNCTIONS | ast.ClassDef)]
    return {node.name: {ast.unparse(d) for d in node.decorator_list} for node in nodes}


def assigned(tree):
    """Names of the values that a module defines."""
    targets = []
    for node in tree.body:
        targets += (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def signatures(tree, without):
    """All names in the annotations of the module's functions and methods, but of those that are private or in `without`."""
    nodes = [n for n in tree.body if isinstance(n, FUNCTIONS | ast.ClassDef) and n.name not in without]
    methods = [m for n in nodes if isinstance(n, ast.ClassDef) for m in n.body if isinstance(m, FUNCTIONS)]
    said = []
    for function in [*(n for n in nodes if isinstance(n, FUNCTIONS)), *methods]:
        if not function.name.startswith("_") or function.name == "__init__":
            said += [function.returns, *(a.annotation for a in ast.walk(function.args) if isinstance(a, ast.arg))]
    return {n.id for annotation in said if annotation for n in ast.walk(annotation) if isinstance(n, ast.Name)}


def words(tree):
    """All names, attributes and short texts of a file: what it may mean a name of another module by."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 60:
            yield node.value.rpartition(".")[2]


@cache
def uses():
    """{file: what it means, see `meant_by`} of every file of the repository."""
    found = {}
    for path in [*SOURCES.values(), *(ROOT / "tools").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        module = module_name(path) if path in SOURCES.values() else ""
        found[path] = meant_by(tree_of(path), module, path.name == "__init__.py")
    return found


def meant_by(tree, module="", is_package=False):
    """What a file imports, with the modules that it is of; its words."""
    names = imported(tree, module, is_package).values()
    return {*names, *(name.rpartition(".")[0] for name in names)}, {*words(tree)}


def public(name):
    """All names that a module's `__all__` has; empty if it has none, or if no package says that the module is public."""
    module = importlib.import_module(name)
    package, _, leaf = name.rpartition(".")
    is_public = name in PACKAGES or leaf in getattr(importlib.import_module(package), "__all__", ())
    return set(getattr(module, "__all__", ())) if is_public else set()


def in_a_package(name, leaf):
    """Whether a package has this name of a module in its `__all__`."""
    value = getattr(importlib.import_module(name), leaf)
    return any(getattr(importlib.import_module(p), leaf, None) is value and leaf in public(p) for p in PACKAGES)


def unmarked(name, path, used):
    """Functions and classes of a module that should begin with an underscore, where the files `used` are the others."""
    if any(part.startswith("_") for part in name.split(".")):
        return []
    found = []
    for leaf, decorators in defined(tree_of(path)).items():
        value = getattr(importlib.import_module(name), leaf, None)
        keeps_its_name = decorators & REGISTERED or (inspect.isclass(value) and issubclass(value, nn.Module))
        if leaf.startswith("_") or keeps_its_name or leaf in public(name) or in_a_package(name, leaf):
            continue
        if not any(name in modules and leaf in said for file, (modules, said) in used.items() if file != path):
            found.append(leaf)
    shared = signatures(tree_of(path), without=found)
    return [leaf for leaf in found if leaf not in shared]


@pytest.mark.parametrize("name", PACKAGES)
def test_package_says_what_is_public(name):
    package = importlib.import_module(name)
    assert isinstance(getattr(package, "__all__", None), list), "no __all__"
    assert len(set(package.__all__)) == len(package.__all__)
    exec(f"from {name} import *", names := {})  # imports what is a module, fails at what is not there
    for leaf in package.__all__:
        module = names[leaf]
        if isinstance(module, ModuleType):
            assert module.__name__ == f"{name}.{leaf}" and hasattr(module, "__all__"), f"{leaf} has no __all__"


@pytest.mark.parametrize("name", PACKAGES)
def test_what_a_package_defines_or_takes_is_public_or_marked(name):
    tree = tree_of(SOURCES[name])
    taken = {
        leaf for leaf, what in imported(tree, name, True).items() if what.startswith("s4nd.") and what not in SOURCES
    }
    bound = taken | set(defined(tree)) | assigned(tree)
    assert {leaf for leaf in bound if not leaf.startswith("_")} - set(importlib.import_module(name).__all__) == set()


@pytest.mark.parametrize("name", SOURCES)
def test_what_only_its_module_uses_begins_with_an_underscore(name):
    assert unmarked(name, SOURCES[name], uses()) == []


def test_rule_finds_a_name_that_nobody_else_uses(tmp_path, monkeypatch):
    """The rule itself, on a module whose `shared` a tool uses, and whose `alone` nobody does."""
    path = tmp_path / "made.py"
    path.write_text("def shared(): ...\n\n\ndef alone(): ...\n\n\ndef _marked(): ...\n")
    module = ModuleType("s4nd.made")
    exec(path.read_text(), vars(module))
    monkeypatch.setitem(sys.modules, "s4nd.made", module)
    user = ast.parse("from s4nd.made import shared")
    assert unmarked("s4nd.made", path, {tmp_path / "user.py": meant_by(user)}) == ["alone"]
