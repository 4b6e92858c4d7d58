"""The compilers, devices and backends of `s4nd doctor`, and a model. See probe.py for what checks say."""

import importlib.util
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Thing = tuple[str, Callable[[], str]]
TOLERANCE = (
    1e-5  # of a product of 16 float32 terms with phases up to 16: 84 units of the last place, of the largest value
)


def compilers() -> list[Thing]:
    return [("C++ compiler", lambda: _version(cxx(), "torch.compile and KeOps need one: install g++, or set CXX"))] + [
        (name, lambda name=name: _version(_cuda_tool(name), "only to compile extensions or kernels for NVIDIA GPUs"))
        for name in ("nvcc", "ptxas")
    ]


def cxx() -> str | None:
    """What torch.compile and KeOps call."""
    return os.environ.get("CXX") or shutil.which("clang++" if platform.system() == "Darwin" else "g++")


def _cuda_tool(name: str) -> str | None:
    if found := shutil.which(name):
        return found
    homes = [os.environ.get(variable) for variable in ("CUDA_HOME", "CUDA_PATH")]
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        homes.append(str(Path(triton.origin).parent / "backends" / "nvidia"))
    return next((str(path) for home in homes if home and (path := Path(home, "bin", name)).is_file()), None)


def _version(command: str | None, otherwise: str) -> str:
    if command is None:
        return f"none: {otherwise}"
    done = subprocess.run([*command.split(), "--version"], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line]
    return (
        f"{command}: {next((line for line in lines if 'release' in line), lines[0])}"  # NVIDIA's have it further down
    )


def devices() -> list[Thing]:
    from s4nd.conv.fused import device_refusal
    from s4nd.ops.dispatch import choose

    def say(device: Any) -> str:
        import torch

        if device.type == "cuda":
            about = torch.cuda.get_device_properties(device)
            memory, capability = about.total_memory / 2**30, f"{about.major}.{about.minor}"
            reason = device_refusal(device)
            text = f"{about.name}, {memory:.1f} GiB, compute capability {capability}; convolutions are "
            text += f"not fused: {reason}" if reason else "fused"
        else:
            text = (
                f"{torch.get_num_threads()} threads of {os.cpu_count()}" if device.type == "cpu" else platform.machine()
            )
        return f'{text}; backend="auto" is {choose(device)}'

    import torch

    found = _devices()
    things: list[Thing] = [(str(device), partial(say, device)) for device in found]
    if len(found) == 1:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        things.append(("GPU", lambda: f"none: none found; torch is built {built}"))
    return things


def _devices() -> list:
    import torch

    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    mps = [torch.device("mps")] if torch.backends.mps.is_available() else []
    return [torch.device("cpu"), *gpus, *mps]


def backend(name: str) -> list[Thing]:
    """One of s4nd.ops, on every device."""
    return [(f"{name} on {device}", partial(_products, name, device)) for device in _devices()]


def _products(name: str, device: Any) -> str:
    """A Vandermonde and a Cauchy product of float32 against their definitions in float64."""
    import torch

    from s4nd.ops import BackendError, cauchy, vandermonde
    from s4nd.ops.cauchy import cauchy_definition
    from s4nd.ops.vandermonde import vandermonde_definition

    r = torch.Generator().manual_seed(0)
    w, z = torch.randn(2, 3, 16, 2, generator=r), torch.rand(16, 2, generator=r) + 0.1
    x = torch.rand(3, 16, 2, generator=r) * torch.tensor([-1.0, 1.0])
    said = []
    forms: list[tuple[str, Callable, Callable, Any]] = [
        ("vandermonde", vandermonde, vandermonde_definition, 16),
        ("cauchy", cauchy, cauchy_definition, z),
    ]
    for what, function, definition, grid in forms:
        exact = definition(w.double(), x.double(), grid.double() if isinstance(grid, torch.Tensor) else grid)
        there = [t.to(device) if isinstance(t, torch.Tensor) else t for t in (w, x, grid)]
        try:
            times = []
            for _ in range(6):
                start = time.perf_counter()
                y = function(*there, backend=name).cpu()
                times.append(time.perf_counter() - start)
        except BackendError as error:
            if _may_refuse(name, device.type):
                return f"none: {error}"
            raise
        off = ((y.double() - exact).abs().max() / exact.abs().max()).item()
        if not off <= TOLERANCE:
            raise RuntimeError(f"a {what} product is off by {off:.0e} of its largest value")
        said.append(f"{what} error {off:.0e}, {1e3 * min(times[1:]):.2f} ms")
    return "; ".join(said)


def _may_refuse(name: str, device: str) -> bool:
    """Whether nothing here says that this backend should run: no package, no compiler, or no device of its kind."""
    if name == "triton":
        return importlib.util.find_spec("triton") is None or device != "cuda"
    return name == "keops" and (importlib.util.find_spec("pykeops") is None or cxx() is None or device == "mps")


def models() -> list[Thing]:
    def check() -> str:
        import timm
        import torch

        import s4nd.models

        model = timm.create_model("s4nd_iso_tiny", num_classes=2, img_size=8, embed_dim=8, depth=1).eval()
        with torch.no_grad():
            if not all(model(torch.ones(1, 3, size, size)).isfinite().all() for size in (8, 12)):
                raise RuntimeError("a model gives numbers that are not finite")
        return f"{s4nd.__version__} in {Path(s4nd.__file__).parent}; a model runs at two sizes"

    return [("s4nd", check)]
