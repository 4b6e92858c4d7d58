"""KeOps against the definitions, and its guard against what it is for: no compiler, several processes, a damaged cache."""

import fcntl
import functools
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from s4nd.ops import BackendError, vandermonde
from s4nd.ops.vandermonde import vandermonde_definition

pytest.importorskip("pykeops", reason="needs the extra: pip install 's4nd[keops]'")
pytestmark = pytest.mark.filterwarnings("default")  # of pykeops and the compiler's own parts

ROOT = Path(__file__).resolve().parents[2]
VANDERMONDE = functools.partial(vandermonde, backend="keops")
F64 = torch.float64

COMPILER = """#!/bin/bash
# The compiler, in haste, with a list of the libraries that it made.
for a; do [[ $a == -O3 || $a == -flto=auto ]] || args+=("$a"); done
g++ -O0 "${args[@]}" || exit
[[ $1 != -shared ]] || echo "${@: -1}" >> "$COMPILED"
"""
PRODUCT = """
import os, torch
from s4nd.ops import vandermonde
w, x = torch.ones(1, 1, 2, 2), -torch.ones(1, 2, 2)
print(vandermonde(w, x, 3, backend="keops").shape, os.environ.get("KEOPS_VERBOSE"), flush=True)
"""
BOTH = """
import torch
from torch import distributed
from s4nd.ops import cauchy, vandermonde
from s4nd.ops.cauchy import cauchy_definition
from s4nd.ops.vandermonde import vandermonde_definition

distributed.init_process_group("gloo")
torch.manual_seed(0)
w, x = torch.randn(2, 3, 4, 2, requires_grad=True), -torch.rand(3, 4, 2)
x.requires_grad_()
for f, definition, grid in (vandermonde, vandermonde_definition, 5), (cauchy, cauchy_definition, torch.rand(5, 2)):
    distributed.barrier()  # both compile at once
    y, expected = f(w, x, grid, backend="keops"), definition(w, x, grid)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    gradients = (torch.autograd.grad(t.square().sum(), (w, x)) for t in (y, expected))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * expected.abs().max().item() ** 2)
"""


def poles(H, N):
    return torch.stack([-torch.rand(H, N, dtype=F64), 3 * torch.randn(H, N, dtype=F64)], dim=-1)


def start(code, **env):
    """A process of its own, without what the environment of the tests says about KeOps and ranks."""
    kept = {k: v for k, v in os.environ.items() if "KEOPS" not in k and "RANK" not in k}
    env = kept | {"PYTHONPATH": str(ROOT)} | {k: str(v) for k, v in env.items()}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", code], env=env, text=True, **pipes)


def end(*processes, status=0):
    """What each of them said."""
    said = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [status] * len(said), said
    return said[0] if len(said) == 1 else said


def two_processes(code, status=0, **env):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": 2}
    return end(*(start(code, RANK=rank, LOCAL_RANK=rank, **env) for rank in range(2)), status=status)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """The environment of a C++ compiler that does not optimise."""
    path = tmp_path_factory.mktemp("compiler") / "cxx"
    path.write_text(COMPILER)
    path.chmod(0o755)
    return {"CXX": path, "COMPILED": path.with_name("compiled")}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, compiler):
    """(folder, what was said, libraries that were made) of two processes, started at once on an empty cache of both."""
    folder = tmp_path_factory.mktemp("cache")
    said = two_processes(BOTH, KEOPS_CACHE_FOLDER=folder, **compiler)
    return folder, said, compiler["COMPILED"].read_text().split()


@pytest.mark.parametrize("centre", [False, True])
def test_keops_equals_definition_with_gradients(centre):
    torch.manual_seed(0)
    leaves = torch.randn(6, 3, 5, 2, dtype=F64, requires_grad=True), poles(3, 5).requires_grad_()
    expected, got = (form(*leaves, 7, centre=centre) for form in (vandermonde_definition, VANDERMONDE))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * expected.detach().abs().max())
    probe = torch.randn_like(expected)
    for g, e in zip(*(torch.autograd.grad((y * probe).sum(), leaves) for y in (got, expected)), strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-11 * e.abs().max())


def test_package_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    """A backend that was asked for is never replaced in silence."""
    from s4nd.ops import _keops_guard

    monkeypatch.setitem(sys.modules, "pykeops.torch", None)
    _keops_guard._imported.cache_clear()
    with pytest.raises(BackendError, match=r"backend='keops' cannot run here: pykeops is not installed: pip install"):
        VANDERMONDE(torch.randn(1, 1, 2, 2), torch.randn(1, 2, 2), 4)
    _keops_guard._imported.cache_clear()


@pytest.mark.parametrize("dtype, device", [(torch.bfloat16, "cpu"), (torch.float32, "meta")])
def test_what_keops_cannot_compute_is_refused(dtype, device):
    w, x = torch.empty(1, 1, 2, 2, dtype=dtype, device=device), torch.empty(1, 2, 2, dtype=dtype, device=device)
    with pytest.raises(BackendError, match=rf"float32 or float64 on cpu or cuda, got {dtype} on {device}"):
        VANDERMONDE(w, x, 4)


def test_formula_that_gives_wrong_numbers_is_refused(monkeypatch):
    from s4nd.ops import _keops

    right = _keops._vandermonde
    monkeypatch.setattr(_keops, "_vandermonde", lambda *arguments: 1.001 * right(*arguments))
    with pytest.raises(BackendError, match=r"a small product is off by \d.*clean_pykeops"):
        VANDERMONDE(torch.randn(1, 1, 2, 2, dtype=F64), poles(1, 2), 4)


class Kernels(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return VANDERMONDE(torch.randn(1, 1, 2, 2, dtype=F64), poles(1, 2), 4)


def test_data_worker_is_refused_even_if_its_parent_was_ready():
    assert Kernels()[0].shape == (1, 1, 4)
    with pytest.raises(BackendError, match="a worker of a DataLoader must not compile"):
        next(iter(DataLoader(Kernels(), num_workers=1)))


def test_modes_of_the_caller_are_not_those_of_the_trial():
    """Of which torch.func refuses leaves, and autocast would round."""
    from s4nd.ops import _keops_guard

    _keops_guard._try.cache_clear()
    w, x = torch.randn(1, 2, 3, 2, dtype=F64), poles(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = (
            torch.func.grad(lambda w, f=f: f(w, x, 4).sum())(w) for f in (VANDERMONDE, vandermonde_definition)
        )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_compiled_function_breaks_its_graph_at_keops_and_is_right():
    torch.manual_seed(0)
    w, x = torch.randn(1, 2, 3, 2, dtype=F64, requires_grad=True), poles(2, 3).requires_grad_()
    compiled = torch.compile(lambda w, x: 2 * VANDERMONDE(3 * w, x, 4), backend="eager")
    (got, g), (expected, e) = (
        (y.detach(), torch.autograd.grad(y.square().sum(), (w, x)))
        for y in (compiled(w, x), 6 * vandermonde_definition(w, x, 4))
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12 * expected.abs().max())
    torch.testing.assert_close(g, e, rtol=0, atol=1e-11 * max(t.abs().max() for t in e))


def test_windows_is_told_so(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(BackendError, match="KeOps does not run on Windows; or use backend='torch'"):
        VANDERMONDE(torch.randn(1, 1, 2, 2), poles(1, 2).float(), 3)


def test_machine_without_a_compiler_is_told_so(tmp_path):
    for tool in ("uname", "ldconfig"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "/bin/true")
    process = start(PRODUCT, PATH=tmp_path, CXX="", KEOPS_CACHE_FOLDER=tmp_path / "cache")
    out, err = end(process, status=1)
    assert out == ""
    reason = "there is no C++ compiler: install g++, or set CXX; or use backend='torch'"
    assert err.splitlines()[-1] == f"s4nd.ops.dispatch.BackendError: backend='keops' cannot run here: {reason}"


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    _, err = end(start(PRODUCT, KEOPS_CACHE_FOLDER=tmp_path / "file" / "cache"), status=1)
    assert "file/cache'; KEOPS_CACHE_FOLDER names another folder to compile in" in err.splitlines()[-1]


@pytest.mark.slow
def test_processes_that_share_a_folder_compile_one_after_another_and_each_formula_once(compiled):
    """Products and gradients of both are right in each (see BOTH), and KeOps says nothing."""
    _, said, libraries = compiled
    assert said == [("", ""), ("", "")]
    assert len(libraries) == 6 and set(Counter(libraries).values()) == {
        1
    }  # a product and two gradients, of two formulas


def test_processes_of_a_machine_have_folders_of_their_own(tmp_path):
    """Unless they are told where: the first has that of a process that is alone. The compiler fails, its folder is named."""
    said = two_processes(PRODUCT, status=1, HOME=tmp_path, CXX="/bin/false")
    folders = [Path(re.search(r"made no library in (\S+):", err).group(1)) for _, err in said]
    (default,) = (tmp_path / ".cache").iterdir()
    assert [folder.parent for folder in folders] == [default, default / "rank1"]


@pytest.mark.slow
def test_what_one_process_compiled_is_loaded_by_the_next(compiled):
    folder, _, _ = compiled
    out, err = end(start(PRODUCT, CXX="/bin/false", KEOPS_CACHE_FOLDER=folder))
    assert (out, err) == ("torch.Size([1, 1, 3]) None\n", "")  # and the environment is as it was


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path):
    path.write_bytes(b"\x00" * 100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("pykeops_cpp_*.so", cut),  # which would be a bus error
        ("pykeops_cpp_*.so", overwrite),
        ("get_keops_dll_impl_cache.pkl", cut),
        ("LoadKeOps_cpp_class_cache.pkl", overwrite),
    ],
)
def test_damaged_cache_is_named_with_the_way_to_clear_it(compiled, tmp_path, pattern, damage):
    shutil.copytree(compiled[0], tmp_path / "cache")
    (build,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    for path in build.glob(pattern):
        damage(path)
    _, err = end(start(PRODUCT, KEOPS_CACHE_FOLDER=tmp_path / "cache"), status=1)
    last = [line for line in err.splitlines() if line.startswith("s4nd.ops.dispatch.BackendError")]
    assert len(last) == 1 and f"its cache in {build} seems damaged" in last[0]
    assert "remove that folder, or call pykeops.clean_pykeops(); or use backend='torch'" in last[0]


def test_build_folder_that_the_user_set_is_kept_whatever_the_rank(tmp_path):
    """With a compiler that fails, which is told too."""
    code = f"import pykeops\npykeops.set_build_folder({str(tmp_path / 'own')!r}){PRODUCT}"
    _, err = end(start(code, RANK=1, CXX="/bin/false", KEOPS_CACHE_FOLDER=tmp_path / "cache"), status=1)
    reason = f"its C++ compiler made no library in {tmp_path / 'own'}: PYKEOPS_VERBOSE=1 shows the compiler's words"
    assert f"BackendError: backend='keops' cannot run here: {reason}; or use backend='torch'\n" in err


@pytest.mark.slow
def test_another_build_folder_is_tried_anew(compiled, tmp_path):
    shutil.copytree(compiled[0], tmp_path / "cache")
    other = tmp_path / "other"
    other.mkdir()
    (other / "pykeops_cpp_0.so").write_bytes(b"\x7fELF")
    again = f"import pykeops; pykeops.set_build_folder({str(other)!r})\nvandermonde(w, x, 3, backend='keops')"
    _, err = end(start(PRODUCT + again, KEOPS_CACHE_FOLDER=tmp_path / "cache"), status=1)
    assert f"its cache in {other} seems damaged (ImportError('pykeops_cpp_0.so is cut short'))" in err


@pytest.mark.slow
def test_tables_of_a_folder_are_written_by_one_process_at_a_time(compiled, tmp_path):
    """KeOps writes them when the process ends."""
    shutil.copytree(compiled[0], tmp_path / "cache")
    tables = list(tmp_path.glob("cache/*/*.pkl"))
    with start(f"{PRODUCT}\ninput()", KEOPS_CACHE_FOLDER=tmp_path / "cache") as process:
        assert process.stdout.readline().startswith("torch.Size([1, 1, 3])")
        for table in tables:
            table.unlink()
        with (tmp_path / "cache" / ".s4nd.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process.stdin.write("\n")
            process.stdin.flush()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=3)
            assert len(tables) == 2 and not any(table.exists() for table in tables)
        end(process)
        assert all(table.exists() for table in tables)
