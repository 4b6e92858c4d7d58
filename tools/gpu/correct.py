"""Correctness on the device: the errors of every backend and algorithm beside those of plain torch in the same dtype.

An error is the largest deviation from float64, as a fraction of the largest number of the result. It is `right` if it is at
most twice that of plain torch: of the definition of a product or of an algorithm; for a layer, of Toeplitz matrices and torch's
products.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from gpu.settings import Row, Settings, Values
from torch import Tensor

from s4nd import S4ND
from s4nd.conv import ALGORITHMS, separable_conv
from s4nd.conv.definition import definition
from s4nd.nn.kernels import KERNELS
from s4nd.ops import BACKENDS, cauchy, vandermonde
from s4nd.ops.cauchy import cauchy_definition
from s4nd.ops.vandermonde import vandermonde_definition

FACTOR = 2.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Function = Callable[..., Tensor]


def correct(settings: Settings) -> Iterator[Row]:
    """Errors of products, convolutions and layers, their gradients included, beside plain torch's."""
    yield from products(settings)
    yield from convolutions(settings)
    yield from layers(settings)


def products(settings: Settings) -> Iterator[Row]:
    """Vandermonde and Cauchy products of every backend, in float32."""
    J, H, N, L = (2, 4, 4, 33) if settings.batch < 16 else (3, 96, 32, 112)
    w, x, z = drawn(settings, (J, H, N, 2), (H, N, 2), (L, 2))
    x = torch.stack([-x[..., 0].abs() / L, x[..., 1]], dim=-1)  # decaying
    z = torch.stack([1 + z[..., 0].abs(), z[..., 1]], dim=-1)  # away from the poles
    by_definition = {
        "vandermonde": lambda w, x: vandermonde_definition(w, x, L),
        "vandermonde, centred": lambda w, x: vandermonde_definition(w, x, L, centre=True),
        "cauchy": cauchy_definition,
    }
    by_backend = {
        "vandermonde": lambda w, x, backend: vandermonde(w, x, L, backend=backend),
        "vandermonde, centred": lambda w, x, backend: vandermonde(w, x, L, centre=True, backend=backend),
        "cauchy": lambda w, x, z, backend: cauchy(w, x, z, backend=backend),
    }
    for name, plain in by_definition.items():
        inputs = (w, x, z) if name == "cauchy" else (w, x)
        for backend in BACKENDS:
            function = partial(by_backend[name], backend=backend)
            yield Row(f"{name}, float32", backend, partial(errors, function, plain, inputs, torch.float32))


def convolutions(settings: Settings) -> Iterator[Row]:
    """Convolutions with given kernels by every algorithm; the fused one is of CUDA alone."""
    for H, *size in settings.stages:
        B, H = min(settings.batch, 4), min(H, 32)
        shapes = [(B, H, *size), (1, H), *((2, 1, H, 2 * n - 1) for n in size)]
        inputs = drawn(settings, *shapes)
        inputs = [*inputs[:2], *(k / k.shape[-1] for k in inputs[2:])]
        for dtype in DTYPES:
            for name in dict.fromkeys(("auto", *ALGORITHMS, "fused")):
                if name == "kronecker" and torch.Size(size).numel() > 256:
                    continue  # a matrix of all pairs of samples
                plain = partial(plain_convolution, name if name in ("fft", "kronecker") else "toeplitz")
                measure = partial(errors, partial(convolution, name), plain, inputs, DTYPES[dtype])
                yield Row(f"convolution {'x'.join(map(str, size))}, {dtype}", name, measure)


def convolution(algorithm: str, u: Tensor, skip: Tensor, *kernels: Tensor) -> Tensor:
    return separable_conv(u, kernels, skip, algorithm=algorithm)


def plain_convolution(algorithm: str, u: Tensor, skip: Tensor, *kernels: Tensor) -> Tensor:
    return definition(u, kernels, skip, [algorithm] * len(kernels))


def layers(settings: Settings) -> Iterator[Row]:
    """Layers of every kernel as they come, against their float64 selves on the CPU."""
    H, *size = settings.stages[-1]
    (u,) = drawn(settings, (2, min(H, 32), *size))
    for kernel in KERNELS:
        make = partial(S4ND, u.shape[1], len(size), kernel=kernel, base_size=[n + 1 for n in size], rank=2)
        for dtype in DTYPES:
            yield Row(f"layer {kernel}, {dtype}", "auto", partial(layer_errors, make, u, DTYPES[dtype], settings))


def layer_errors(make: Callable[..., S4ND], u: Tensor, dtype: torch.dtype, settings: Settings) -> Values:
    """Of a layer with float32 parameters on signals of a dtype, and of the plainest form of it."""
    torch.manual_seed(0)
    layer = make()
    found = []
    plainest = {"algorithm": "toeplitz", "backend": "torch"}
    for options, device, of in (({}, "cpu", torch.float64), ({}, u.device, dtype), (plainest, u.device, dtype)):
        copy = make(**options).to(device, torch.promote_types(of, torch.float32))
        copy.load_state_dict(layer.state_dict())
        x = u.to(device, of).detach().requires_grad_()
        y = copy(x)
        y.backward(weights_like(y))
        found.append([y.detach(), x.grad, *(p.grad for p in copy.parameters())])
    names = ["y", "u", *(name for name, _ in layer.named_parameters())]
    return compared(names, *found)


def errors(function: Function, plain: Function, inputs: Sequence[Tensor], dtype: torch.dtype) -> Values:
    """Of the values of a function of these inputs (float64), and of the gradients of each, in a dtype."""
    rounded = [x.to(dtype) for x in inputs]  # the inputs of all, so that nobody's error is in their rounding
    results = []
    for run, of in ((plain, torch.float64), (function, dtype), (plain, dtype)):
        leaves = [x.to(of).detach().requires_grad_() for x in rounded]
        y = run(*leaves)
        y.backward(weights_like(y))
        results.append([y.detach(), *(x.grad for x in leaves)])
    return compared(["value", *(f"gradient {i}" for i in range(len(inputs)))], *results)


def compared(names: Sequence[str], right: list[Tensor], mine: list[Tensor], plain: list[Tensor]) -> Values:
    """The worst of all results: its error, plain torch's, their ratio, and whether all are small enough."""
    worst: Values = {"ratio": -1.0}
    enough = True
    for name, r, m, p in zip(names, right, mine, plain, strict=True):
        mistakes = [relative(x, r) for x in (m, p)]
        # Equal errors of nothing are as good as those of plain torch; below the last digit of a result nothing is measured.
        least = torch.finfo(m.dtype).eps
        ratio = max(mistakes[0], least) / max(mistakes[1], least)
        enough = enough and ratio <= FACTOR
        if not ratio <= worst["ratio"]:
            worst = {"ratio": ratio, "error": mistakes[0], "plain": mistakes[1], "worst": name}
    return worst | {"right": enough}


def relative(x: Tensor, right: Tensor) -> float:
    right = right.to(x.device, torch.float64)
    return ((x.double() - right).abs().max() / right.abs().max()).item()


def weights_like(y: Tensor) -> Tensor:
    """A gradient of the output that is no constant, the same in every dtype."""
    return torch.linspace(-1, 1, y.numel(), dtype=torch.float64).bfloat16().to(y.device, y.dtype).view(y.shape)


def drawn(settings: Settings, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers in float64."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(settings.device) for shape in shapes]
