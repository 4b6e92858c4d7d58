"""What `s4nd doctor` tries. It runs this file in processes of their own: foreign code may print, hang or die there.

    python probes.py SEARCH_PATH PROBE [ARGUMENT ...]

A probe is a list of things to try, (name, function); a function returns what is to be said of it, or raises. The working
directory is an empty folder of the process, in which `answers` gets a line of JSON for each: [name] before it is tried, and
[name, state, text] after. States: "ok", "none" for what need not be here, "FAULT" for what should work here and does not.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

Thing = tuple[str, Callable[[], str]]
TOLERANCE = (
    1e-5  # of a product of 16 float32 terms with phases up to 16: 84 units of the last place, of the largest value
)


class Absent(Exception):
    """What is not here, and need not be; the message says so."""


# Packages


def packages(*requirements: str) -> list[Thing]:
    """Each as `REQUIREMENT` or `REQUIREMENT: how to install it`; without the latter it is required."""
    return [_package(*requirement.partition(": ")[::2]) for requirement in requirements]


def _package(requirement: str, install: str) -> Thing:
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)

    def check() -> str:
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            if install:
                raise Absent(f"missing: {install}") from None
            raise RuntimeError(f"missing, and required: pip install '{wanted}'") from None
        if not wanted.specifier.contains(version, prereleases=True):
            raise RuntimeError(f"{version} does not fit {wanted.specifier}: pip install '{wanted}'")
        if wanted.name == "pykeops":  # its import compiles; the probe of the backend is alone with it
            return f"{version}, tried as a backend"
        importlib.import_module(_module(wanted.name))
        return f"{version}{USES.get(wanted.name, str)()}"

    return wanted.name, check


def _module(distribution: str) -> str:
    """The name under which it is imported: that of its only folder of code, or its own."""
    about = importlib.metadata.distribution(distribution)
    names = {f.parts[0] for f in about.files or () if len(f.parts) == 2 and f.name == "__init__.py"}
    names |= set() if about.files else set((about.read_text("top_level.txt") or "").split())
    mine = sorted(name for name in names if name[0] not in "._")
    return distribution if distribution in mine or not mine else mine[0]


def _use_torch() -> str:
    import torch

    if not torch.equal(torch.arange(4.0).view(2, 2) @ torch.eye(2), torch.arange(4.0).view(2, 2)):
        raise RuntimeError("a product with the identity is wrong")
    return f", built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'the CPU'}"


def _use_torchvision() -> str:
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]])
    if torchvision.ops.nms(boxes, torch.tensor([3.0, 2, 1]), 0.5).tolist() != [0, 2]:
        raise RuntimeError("its operators give wrong results")
    return ", its operators fit torch"


def _use_pillow() -> str:
    from PIL import Image

    for suffix in ("png", "jpg"):
        Image.new("RGB", (8, 8), (100, 100, 100)).save(f"image.{suffix}")
        with Image.open(f"image.{suffix}") as image:
            if abs(image.convert("RGB").getpixel((3, 3))[0] - 100) > 2:
                raise RuntimeError(f"a .{suffix} is not read as it was written")
    return ", PNG and JPEG written and read"


def _use_safetensors() -> str:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    save_file({"x": np.arange(3.0)}, "x.safetensors")
    if load_file("x.safetensors")["x"].tolist() != [0, 1, 2]:
        raise RuntimeError("a file is not read as it was written")
    return ", a file written and read"


def _use_av() -> str:
    import av

    _write_clip()
    with av.open("clip.mp4") as film:
        levels = [frame.to_ndarray(format="gray").mean() for frame in film.decode(video=0)]
    return _read_as_written(levels)


def _use_decord() -> str:
    import decord

    if not importlib.util.find_spec("av"):
        return ", no clip decoded: PyAV, which writes it, is missing"
    _write_clip()
    return _read_as_written([frame.mean() for frame in decord.VideoReader("clip.mp4")[:].asnumpy()])


def _write_clip() -> None:
    """clip.mp4: three grey frames."""
    import av
    import numpy as np

    with av.open("clip.mp4", "w") as film:
        stream = film.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        for level in LEVELS:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")))
        film.mux(stream.encode())


def _read_as_written(levels: list) -> str:
    if len(levels) != 3 or any(abs(a - b) > 10 for a, b in zip(levels, LEVELS, strict=True)):
        raise RuntimeError(f"a clip of grey levels {LEVELS} is decoded as {[round(float(a)) for a in levels]}")
    return ", a clip of 3 frames decoded"


LEVELS = [40, 120, 200]


def _use_onnx() -> str:
    import onnx

    onnx.checker.check_model(_onnx_model())
    return ", a model of one operator checked"


def _use_onnxruntime() -> str:
    import numpy as np
    import onnxruntime

    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    if not importlib.util.find_spec("onnx"):
        return f" for {providers}; no model run: onnx, which writes it, is missing"
    session = onnxruntime.InferenceSession(_onnx_model().SerializeToString(), providers=["CPUExecutionProvider"])
    if session.run(["y"], {"x": np.array([-1, 2], np.float32)})[0].tolist() != [0, 2]:
        raise RuntimeError("a model of one operator gives wrong numbers")
    return f" for {providers}; a model of one operator run"


def _onnx_model():
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


USES = {
    "torch": _use_torch,
    "torchvision": _use_torchvision,
    "pillow": _use_pillow,
    "safetensors": _use_safetensors,
    "av": _use_av,
    "decord": _use_decord,
    "decord2": _use_decord,
    "onnx": _use_onnx,
    "onnxruntime": _use_onnxruntime,
}


# Compilers


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
        raise Absent(f"none: {otherwise}")
    done = subprocess.run([*command.split(), "--version"], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line]
    return (
        f"{command}: {next((line for line in lines if 'release' in line), lines[0])}"  # NVIDIA's have it further down
    )


# Devices and backends


def devices() -> list[Thing]:
    from s4nd.ops.dispatch import choose

    def say(device) -> str:
        import torch

        if device.type == "cuda":
            about = torch.cuda.get_device_properties(device)
            memory, capability = about.total_memory / 2**30, f"{about.major}.{about.minor}"
            text = f"{about.name}, {memory:.1f} GiB, compute capability {capability}"
        else:
            text = (
                f"{torch.get_num_threads()} threads of {os.cpu_count()}" if device.type == "cpu" else platform.machine()
            )
        return f'{text}; backend="auto" is {choose(device)}'

    def none(what: str) -> str:
        raise Absent(f"none: {what}")

    import torch

    found = _devices()
    things = [(str(device), lambda device=device: say(device)) for device in found]
    if len(found) == 1:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        things.append(("GPU", lambda: none(built)))
    return things


def _devices() -> list:
    import torch

    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    mps = [torch.device("mps")] if torch.backends.mps.is_available() else []
    return [torch.device("cpu"), *gpus, *mps]


def backend(name: str) -> list[Thing]:
    """One of s4nd.ops, on every device."""
    return [(f"{name} on {device}", lambda device=device: _products(name, device)) for device in _devices()]


def _products(name: str, device) -> str:
    """A Vandermonde and a Cauchy product of float32 against their definitions in float64."""
    import torch

    from s4nd.ops import BackendError, cauchy, vandermonde
    from s4nd.ops.cauchy import cauchy_definition
    from s4nd.ops.vandermonde import vandermonde_definition

    r = torch.Generator().manual_seed(0)
    w, z = torch.randn(2, 3, 16, 2, generator=r), torch.rand(16, 2, generator=r) + 0.1
    x = torch.rand(3, 16, 2, generator=r) * torch.tensor([-1.0, 1.0])
    said = []
    for what, function, definition, grid in (
        ("vandermonde", vandermonde, vandermonde_definition, 16),
        ("cauchy", cauchy, cauchy_definition, z),
    ):
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
                raise Absent(str(error)) from None
            raise
        error = ((y.double() - exact).abs().max() / exact.abs().max()).item()
        if not error <= TOLERANCE:
            raise RuntimeError(f"a {what} product is off by {error:.0e} of its largest value")
        said.append(f"{what} error {error:.0e}, {1e3 * min(times[1:]):.2f} ms")
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


PROBES = {f.__name__: f for f in (packages, compilers, devices, backend, models)}


def main(path: str, probe: str, *arguments: str) -> None:
    sys.path[:] = json.loads(path)  # that of the asking process, without the folder of this file
    with open("answers", "w", encoding="utf-8") as answers:
        for name, check in PROBES[probe](*arguments):
            print(json.dumps([name]), file=answers, flush=True)
            try:
                state, text = "ok", check()
            except Absent as absent:
                state, text = "none", str(absent)
            except Exception as error:
                state, text = "FAULT", f"{type(error).__name__}: {error}"
            print(json.dumps([name, state, " ".join(text.split())]), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
