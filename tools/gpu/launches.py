"""How many programs one generation of kernels starts on a device: on a GPU each costs some microseconds of the host's time.

On CUDA torch's profiler counts them. Elsewhere the operations are counted that would start one, on fake CUDA tensors, which
need no GPU; a backward pass needs one, so with it the fake tensors are the CPU's, which take the same operations but for
blocks of heads. There an operator of this library counts as one, and so do an FFT and every kernel of compiled code.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

import torch
from gpu.settings import Row, Settings
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from s4nd import S4ND
from s4nd.ops import dispatch

MODES = {"forward": False, "forward and backward": True}
NO_LAUNCH = (
    "empty",
    "new_empty",
    "detach",
    "alias",
    "lift_fresh",
    "_unsafe_view",
    "_local_scalar_dense",
    "promote_types",
)


class Launches(TorchDispatchMode):
    """Counts operations that compute: no views, and nothing that only makes memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        library, _, name = function._schema.name.partition("::")  # "prim" has questions, such as where a fake tensor is
        self.count += library != "prim" and not (function.is_view or name.startswith(NO_LAUNCH))
        return function(*args, **(kwargs or {}))


def launches(settings: Settings) -> Iterator[Row]:
    """Programs that one generation of a layer's kernels starts, forward and with the backward pass."""
    H, *size = settings.stages[0]
    for kernel in ("s4d", "s4"):
        for backend in ("torch", "triton"):
            of = f"{kernel}, {H} channels, {' x '.join(map(str, size))}"
            make = partial(S4ND, H, len(size), kernel=kernel, backend=backend, base_size=size)
            yield Row(of, f"{backend}, operations", partial(operations, make, size))
            if settings.device.type == "cuda":
                yield Row(of, f"{backend}, profiler", partial(profiled, make, size, settings))
            yield Row(of, f"{backend}, compiled", partial(compiled, make, size, settings))


def generation(layer: S4ND, size: list[int], both: bool) -> None:
    """As forward makes them: axes that are alike together."""
    lags = layer.all_kernel_lags(size)
    if both:
        backward(lags)


def backward(lags: list[Tensor]) -> None:
    """One operation more for each axis, which the caller takes off: the gradient that it begins with."""
    torch.autograd.backward(lags, [torch.ones_like(k) for k in lags])


def operations(make: Callable[..., S4ND], size: list[int]) -> dict[str, float]:
    """Counted on fake tensors."""
    counts = {}
    for name, both in MODES.items():
        layer, device = make(), "cpu" if both else "cuda"
        # Fake tensors are all that Triton's programs are asked for here.
        with patch.object(dispatch, "triton_refusal", lambda device: None), FakeTensorMode(), Launches() as seen:
            for part in layer.modules():
                for own, p in part.named_parameters(recurse=False):
                    setattr(part, own, nn.Parameter(torch.empty(p.shape, device=device)))
            seen.count = 0
            generation(layer, size, both)
            counts[name] = seen.count - both * len(size)
    return counts


def profiled(make: Callable[..., S4ND], size: list[int], settings: Settings) -> dict[str, float]:
    """Counted on the device."""
    layer = make(device=settings.device)
    return {name: kernels_of(partial(generation, layer, size, both)) - both * len(size) for name, both in MODES.items()}


def kernels_of(run: Callable[[], object]) -> int:
    """Programs that a run starts on the GPU, copies and fills among them."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as record:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in record.events())


def compiled(make: Callable[..., S4ND], size: list[int], settings: Settings) -> dict[str, float]:
    """Of torch.compile: the profiler's count on CUDA, else the calls in the code that it generates."""
    if not settings.compiles:
        raise RuntimeError("left out by --quick: compilation takes longer than everything else")
    layer = make(device=settings.device)
    layer.all_kernel_lags(size)  # a backend that cannot run says so more clearly uncompiled
    function = torch.compile(lambda: layer.all_kernel_lags(size), fullgraph=True)
    if settings.device.type == "cuda":
        both = kernels_of(lambda: backward(function()))
        return {"forward": kernels_of(function), "forward and backward": both - len(size)}
    from torch._inductor.utils import run_and_get_code

    _, codes = run_and_get_code(lambda: backward(function()))
    forward, *rest = map(calls, codes)
    return {"forward": forward, "forward and backward": forward + sum(rest)}


def calls(code: str) -> int:
    """Calls of generated kernels and of operators in the body of a generated program."""
    body = code[code.index("def call(") :]
    return len(
        re.findall(r"^\s+(?:\w+ = )?(?:cpp_fused\w*\(|extern_kernels\.|torch\.ops\.|aten\.)", body, re.MULTILINE)
    )
