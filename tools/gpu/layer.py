"""The layer against what it replaces, the generation of its kernels alone, and the layer on sequences against attention."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch
import torch.nn.functional as F
from bench_measure import Contestant, ReferenceForm, training
from gpu.measure import bandwidth, timed
from gpu.report import LIMIT
from gpu.settings import Row, Settings, Values
from torch import nn

from s4nd import S4ND
from s4nd.conv import ALGORITHMS, separable_conv

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
WINDOW = 7
ONE_MATRIX = 256  # samples up to which one matrix for all axes is tried
# How often a signal of the input's size must pass the memory: in and out; with the gradient of the output and the input in, and
# the gradient of the input out.
PASSES = {"forward": 2, "step": 5}


def layer(settings: Settings) -> Iterator[Row]:
    """Layers (with the generation of their kernels) and convolutions alone (with given kernels), forward and a training step,
    against a 7 x 7 depthwise convolution in both memory layouts, against FFTs over all axes, and against the memory's limit."""
    for dtype in DTYPES:
        for size in settings.stages:
            for mode in PASSES:
                of = f"{'x'.join(map(str, size))}, {dtype}, {mode}"
                yield Row(of, LIMIT, partial(limit, settings, size, DTYPES[dtype], mode))
                made = contestants(size)
                if size == settings.stages[0] and dtype == "bfloat16":  # each is a compilation
                    made["s4d layer compiled"] = partial(compiled_layer, size)
                for name, make in made.items():
                    yield Row(of, name, partial(run, make, settings, size, DTYPES[dtype], mode))


def limit(settings: Settings, size: Sequence[int], dtype: torch.dtype, mode: str) -> Values:
    """How long what has to pass the memory takes at the rate of a large copy, whatever computes it. Of a signal that the
    device's cache holds, a part need not pass."""
    passing = PASSES[mode] * settings.batch * math.prod(size) * dtype.itemsize
    return {"ms": 1e3 * passing / memory_rate(settings.device), "bytes": float(passing)}


@cache
def memory_rate(device: torch.device) -> float:
    return bandwidth(Settings(device))


def contestants(size: Sequence[int]) -> dict[str, Callable[[Settings, torch.dtype], tuple]]:
    """What makes (function, parameters, memory layout) of each."""
    made = {f"{kernel} layer": partial(s4nd_layer, size, kernel) for kernel in ("s4d", "s4")}
    for name in dict.fromkeys(("auto", *ALGORITHMS, "fused")):
        if name != "kronecker" or math.prod(size[1:]) <= ONE_MATRIX:
            made[f"conv {name}"] = partial(given_kernels, size, name)
    for layout in (torch.contiguous_format, torch.channels_last):
        made[f"{WINDOW} x {WINDOW} {str(layout).rpartition('.')[2].removesuffix('_format')}"] = partial(
            window, size, layout
        )
    made["FFT over all axes"] = partial(reference_form, size)
    return made


def run(make: Callable, settings: Settings, size: Sequence[int], dtype: torch.dtype, mode: str) -> Values:
    torch.manual_seed(0)
    function, parameters, layout = make(settings, dtype)
    u = torch.randn(settings.batch, *size, device=settings.device, dtype=dtype).contiguous(memory_format=layout)
    if mode == "step":
        return timed(training(function, u, parameters=parameters), settings)
    return timed(Contestant(torch.no_grad()(lambda: function(u))), settings)


def s4nd_layer(size: Sequence[int], kernel: str, settings: Settings, dtype: torch.dtype, **options) -> tuple:
    H, *axes = size
    module = S4ND(H, len(axes), kernel=kernel, base_size=axes, device=settings.device, **options)
    return module, tuple(module.parameters()), torch.contiguous_format


def compiled_layer(size: Sequence[int], settings: Settings, dtype: torch.dtype) -> tuple:
    if not settings.compiles:
        raise RuntimeError("left out by --quick")
    torch.compiler.reset()
    module, parameters, layout = s4nd_layer(size, "s4d", settings, dtype)
    function = torch.compile(module)
    return (lambda u: function(u)), parameters, layout


def given_kernels(size: Sequence[int], algorithm: str, settings: Settings, dtype: torch.dtype) -> tuple:
    module, _, layout = s4nd_layer(size, "s4d", settings, dtype)
    leaves = tuple(k.detach().requires_grad_() for k in module.all_kernel_lags(size[1:]))
    skip = module.D
    return (lambda u: separable_conv(u, leaves, skip, algorithm=algorithm)[:, 0]), (*leaves, skip), layout


def window(size: Sequence[int], layout: torch.memory_format, settings: Settings, dtype: torch.dtype) -> tuple:
    H = size[0]
    conv = nn.Conv2d(H, H, WINDOW, padding=WINDOW // 2, groups=H, device=settings.device, dtype=dtype)
    conv = conv.to(memory_format=layout)
    return conv, tuple(conv.parameters()), layout


def reference_form(size: Sequence[int], settings: Settings, dtype: torch.dtype) -> tuple:
    """FFTs of half precision are not of every length: signals are taken to float32."""
    module, parameters, layout = s4nd_layer(size, "s4d", settings, dtype, align="edge")
    form = ReferenceForm(module)
    return (lambda u: form(u.float()).to(u.dtype)), parameters, layout


def generation(settings: Settings) -> Iterator[Row]:
    """The kernels of a layer, forward and with the backward pass, which do not depend on the signal."""
    for size in settings.stages:
        for mode in PASSES:
            of = f"{'x'.join(map(str, size))}, {mode}"
            for kernel in ("s4d", "s4"):
                for backend in ("torch", "triton"):
                    yield Row(of, f"{kernel}, {backend}", partial(kernels, settings, size, mode, kernel, backend))
                if size == settings.stages[0]:
                    compiled = partial(kernels, settings, size, mode, kernel, "auto", compiled=True)
                    yield Row(of, f"{kernel}, auto, compiled", compiled)


def kernels(
    settings: Settings, size: Sequence[int], mode: str, kernel: str, backend: str, *, compiled: bool = False
) -> Values:
    if compiled and not settings.compiles:
        raise RuntimeError("left out by --quick")
    module, parameters, _ = s4nd_layer(size, kernel, settings, torch.float32, backend=backend)
    generate = partial(module.all_kernel_lags, tuple(size[1:]))
    if compiled:
        torch.compiler.reset()
        generate = torch.compile(generate)

    def step() -> None:
        lags = generate()
        torch.autograd.backward(lags, [torch.ones_like(k) for k in lags])

    if mode == "step":
        return timed(Contestant(step, parameters), settings)
    return timed(Contestant(torch.no_grad()(lambda: generate())), settings)


def attention(settings: Settings) -> Iterator[Row]:
    """A training step on sequences in bfloat16: layers of one axis, and attention's dot products without its projections."""
    H, heads = settings.attention
    for n in settings.lengths:
        batch = max(1, settings.tokens // n)
        of = f"{batch} x {H} x {n}, bfloat16, step"
        for name in ("s4d", "s4"):
            yield Row(of, f"{name} layer", partial(sequence, settings, batch, H, n, name))
        yield Row(of, "attention", partial(dot_products, settings, batch, H // heads, heads, n))


def sequence(settings: Settings, batch: int, H: int, n: int, kernel: str) -> Values:
    module, parameters, _ = s4nd_layer((H, n), kernel, settings, torch.bfloat16)
    u = torch.randn(batch, H, n, device=settings.device, dtype=torch.bfloat16)
    return timed(training(module, u, parameters=parameters), settings)


def dot_products(settings: Settings, batch: int, width: int, heads: int, n: int) -> Values:
    where = dict(device=settings.device, dtype=torch.bfloat16)
    q, k, v = (torch.randn(batch, heads, n, width, **where) for _ in range(3))
    return timed(training(F.scaled_dot_product_attention, q, k, v), settings)
