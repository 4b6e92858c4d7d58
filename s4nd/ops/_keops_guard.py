"""KeOps made ready: imported quietly, into a build folder that no other process compiles into meanwhile, and tried out.

KeOps compiles each formula when it is first used, one for the product and one for each gradient, anew for another dtype or
device. What it compiles stays in a folder that is neither locked nor checked: two processes that compile there at once load
each other's half-written libraries, and a library that was cut short kills the process that loads it. So

- each of several processes of a machine has a folder of its own (`cache_folder`), unless KEOPS_CACHE_FOLDER names one or
  pykeops was imported before;
- in any folder a process compiles under a lock: where a folder is shared, one process compiles and the others, which come to
  the lock after it, load what it made. A barrier that lets the process of rank 0 go first would do the same, but hang where
  only some of the processes get here;
- a small product of the same formula, with its gradients, is compared with the definition before the one that is asked for.
"""

import atexit
import contextlib
import os
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import get_worker_info

from s4nd.ops.dispatch import BackendError

QUIET = ("PYKEOPS_VERBOSE", "KEOPS_VERBOSE")  # both: the first comes too late for what is said at the import
ROUNDINGS = 256  # of the largest value: 4 terms of a dozen roundings each, and as many again in their gradients


def lazy_tensor(product: Callable, definition: Callable, arguments: tuple, small: tuple) -> Any:
    """pykeops.torch.LazyTensor, once `product` has really computed what `definition` says.

    Args:
        product: (LazyTensor, *arguments) -> tensor.
        definition: (*arguments) -> the same tensor.
        arguments: what is to be computed: tensors and numbers. What is tried has their dtypes, devices and gradients.
        small: arguments of the same kinds, as nested tuples and numbers.

    Raises:
        BackendError: KeOps cannot compute it here; the message says why.
    """
    if sys.platform == "win32":
        raise _refusal("KeOps does not run on Windows")
    # Asked in each call: a worker may have been forked from a process that was ready.
    if get_worker_info() is not None:
        raise _refusal("a worker of a DataLoader must not compile; compute kernels in the process of the model")
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    for t in tensors:
        if t.device.type not in ("cpu", "cuda") or t.dtype not in (torch.float32, torch.float64):
            raise _refusal(f"KeOps computes in float32 or float64 on cpu or cuda, got {t.dtype} on {t.device}")
    LazyTensor = _imported()
    grad = torch.is_grad_enabled()
    _try(product, definition, small, tuple((t.dtype, t.device, grad and t.requires_grad) for t in tensors), _folder())
    return LazyTensor


def cache_folder() -> Path:
    """Where KeOps is to compile: the folder that the environment names, or its own default; there, each process but the
    first of a machine has a folder of its rank, so that the next start finds what it compiled."""
    if chosen := os.environ.get("KEOPS_CACHE_FOLDER"):
        return Path(chosen)
    named = os.environ.get("LOCAL_RANK", os.environ.get("RANK"))
    of_group = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    rank = of_group if named is None else int(named)
    folder = Path.home() / ".cache" / f"keops{version('keopscore')}"  # its own default
    return folder / f"rank{rank}" if rank else folder


@cache
def _imported() -> Any:
    """LazyTensor, from an import with `cache_folder()`; where pykeops was imported before, folder and words are the user's."""
    try:
        if "keopscore" in sys.modules:
            from pykeops.torch import LazyTensor

            return LazyTensor
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        # KeOps reads tables of the folder at its import and writes them at exit. Exits run backwards: lock, write, let go.
        at_exit = contextlib.ExitStack()
        atexit.register(at_exit.close)
        with _alone(folder), _environment(KEOPS_CACHE_FOLDER=str(folder), **_words()):
            from pykeops.torch import LazyTensor
        atexit.register(lambda: at_exit.enter_context(_alone(folder)))
    except Exception as error:
        raise _refusal(_reason(error)) from error
    return LazyTensor


def _folder() -> Path:
    """The build folder as it is now: `pykeops.set_build_folder` may have changed it."""
    config = sys.modules.get("keopscore.config")
    return Path(config.config.get_build_folder()) if config else cache_folder()


@cache
def _try(product: Callable, definition: Callable, small: tuple, kinds: tuple, folder: Path) -> None:
    """Compare a small product and its gradients with the definition in float64; what it needs is compiled and loaded then.

    In a thread of its own, so that no mode of the caller's (autocast, inference, a transform of torch.func) is in it.
    """
    try:
        with _alone(folder), ThreadPoolExecutor(1) as thread:
            thread.submit(_compare, product, definition, small, kinds, folder).result()
    except Exception as error:
        raise _refusal(_reason(error)) from error


def _compare(product: Callable, definition: Callable, small: tuple, kinds: tuple, folder: Path) -> None:
    import pykeops.config
    from pykeops.torch import LazyTensor

    if any(device.type == "cuda" for _, device, _ in kinds) and not pykeops.config.gpu_available:
        raise BackendError("KeOps found no CUDA: it needs libcuda and libnvrtc where the loader finds libraries")
    for path in folder.glob("*.so"):
        if _is_cut(path):
            raise ImportError(f"{path.name} is cut short")

    def run(f: Callable, leaves: list[Tensor]) -> list[Tensor]:
        y = f(*leaves, *small[len(kinds) :])
        asked = [leaf for leaf in leaves if leaf.requires_grad]
        return [y.detach(), *(torch.autograd.grad(y.sum(), asked) if asked else ())]

    leaves = [torch.tensor(s, dtype=d, device=at, requires_grad=g) for s, (d, at, g) in zip(small, kinds, strict=False)]
    exact = [leaf.detach().cpu().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    got = run(lambda *arguments: product(LazyTensor, *arguments), leaves)
    for value, expected in zip(got, run(definition, exact), strict=True):
        error = (value.cpu().double() - expected).abs().max().item()
        if not error <= ROUNDINGS * torch.finfo(value.dtype).eps * expected.abs().max().item():
            raise ArithmeticError(f"a small product is off by {error:.1e}")


def _is_cut(path: Path) -> bool:
    """Whether an ELF library ends before the table of its sections, which linkers write last: to load it would be fatal."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
        return head[:1] in (b"", b"\x7f")  # of other formats the loader says itself what is wrong
    (start,), (size, count) = struct.unpack_from("<Q", head, 40), struct.unpack_from("<HH", head, 58)
    return start + size * count > path.stat().st_size


def _reason(error: Exception) -> str:
    """What to do about an exception out of KeOps, which fails in many ways."""
    if isinstance(error, BackendError):
        return str(error)
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name in ("pykeops", "keopscore", "pybind11"):
        return f"{name} is not installed: pip install 's4nd[keops]'"
    config = sys.modules.get("keopscore.config")
    if name.startswith("pykeops_"):
        if config and config.config.get_cxx_compiler() is None:
            return "there is no C++ compiler: install g++, or set CXX"
        return f"its C++ compiler made no library in {_folder()}: PYKEOPS_VERBOSE=1 shows the compiler's words"
    if isinstance(error, OSError):
        return f"{error}; KEOPS_CACHE_FOLDER names another folder to compile in"
    return f"its cache in {_folder()} seems damaged ({error!r}): remove that folder, or call pykeops.clean_pykeops()"


def _refusal(reason: str) -> BackendError:
    return BackendError(f"backend='keops' cannot run here: {reason}; or use backend='torch'")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process, or thread, is in here with this folder."""
    import fcntl  # which Windows has not

    with (folder / ".s4nd.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, also by a process that dies
        yield


def _words() -> dict[str, str]:
    return {} if any(name in os.environ for name in QUIET) else dict.fromkeys(QUIET, "0")


@contextlib.contextmanager
def _environment(**values: Any) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in {*values, *QUIET}}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
