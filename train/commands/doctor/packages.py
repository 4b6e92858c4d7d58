"""The packages of `s4nd doctor`: their versions, their import, and a little of what they are used for.

Imports nothing at its top that is not Python's own: what is looked at may be broken. See probe.py for what checks say.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

Thing = tuple[str, Callable[[], str]]
LEVELS = [40, 120, 200]  # grey levels of the frames of a clip


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
                return f"none: missing: {install}"
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
            grey: Any = image.convert("L").getpixel((3, 3))
            if abs(grey - 100) > 2:
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
    """clip.mp4: three grey frames.

    Their rows are 64 pixels: on some CPUs decord2 3.3 and 3.4 take the padding of others, of 32 or 96 pixels, for pixels.
    """
    import av
    import numpy as np

    with av.open("clip.mp4", "w") as film:
        stream = film.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 64
        for level in LEVELS:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")))
        film.mux(stream.encode())


def _read_as_written(levels: list) -> str:
    if len(levels) != 3 or any(abs(a - b) > 10 for a, b in zip(levels, LEVELS, strict=True)):
        raise RuntimeError(f"a clip of grey levels {LEVELS} is decoded as {[round(float(a)) for a in levels]}")
    return ", a clip of 3 frames decoded"


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


def _onnx_model() -> Any:
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
