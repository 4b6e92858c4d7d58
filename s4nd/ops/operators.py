"""Operations as operators of torch, which a compiler calls as they are.

Inductor fuses real arithmetic and knows no complex one: the elementwise part of a kernel is faster compiled, but its
contractions, traced, would lose the forms that make them fast. Exporters get the definitions, which need no operator of ours.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DEVICES = ("cpu", "cuda")
Axes = tuple[int | None, ...]


def serve(x: Tensor) -> bool:
    """Whether what is traced here calls operators: torch.compile, on a device that has complex numbers of float64."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting() and x.device.type in DEVICES


def is_fake(x: Tensor) -> bool:
    """Whether a tensor has a shape and no numbers, so that a program of its own for its device cannot run on it."""
    return type(x) not in (Tensor, torch.nn.Parameter) and torch._subclasses.fake_tensor.is_fake(x)


def operator(signature: str, function: Callable, like: Callable, heads: Axes, out_heads: tuple[int, ...]) -> Any:
    """`function` as the operator s4nd::signature, `like` makes empty results, contiguous ones.

    It must conjugate with conj_physical(): compiled code calls it where lazily conjugated tensors are read as they lie.
    heads, out_heads: the axis of heads of each argument and result, None for numbers. A batch of vmap is more heads.
    """
    name, bracket, types = signature.partition("(")

    def contiguous(*args: Any) -> Tensor | tuple[Tensor, ...]:
        out = function(*args)
        return out.contiguous() if isinstance(out, Tensor) else tuple(x.contiguous() for x in out)

    def over_batch(info: Any, in_dims: tuple, *args: Any) -> tuple:
        B = info.batch_size
        fold = lambda x, dim, h: (x.movedim(dim, h) if dim is not None else torch.stack([x] * B, h)).flatten(h, h + 1)  # noqa: E731
        out = made(*(x if h is None else fold(x, dim, h) for x, dim, h in zip(args, in_dims, heads, strict=True)))
        if isinstance(out, Tensor):
            return out.unflatten(out_heads[0], (B, -1)), out_heads[0]
        return tuple(x.unflatten(h, (B, -1)) for x, h in zip(out, out_heads, strict=True)), out_heads

    name = f"s4nd::{name}"  # each of these takes a fifth of the time that torch.library.custom_op takes at import
    torch.library.define(name, bracket + types)
    torch.library.impl(name, DEVICES, contiguous)
    torch.library.register_fake(name, like)
    torch.library.register_vmap(name, over_batch)
    made = getattr(torch.ops.s4nd, signature.partition("(")[0]).default
    return made


def differentiate(made: Any, gradients: Callable) -> None:
    """Give an operator its backward pass: `gradients` of the result's gradient and of its arguments, tensors first."""

    def setup(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.tensors = sum(isinstance(x, Tensor) for x in inputs)
        ctx.numbers = inputs[ctx.tensors :]
        ctx.save_for_backward(*inputs[: ctx.tensors])

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out = gradients(grad, *ctx.saved_tensors, *ctx.numbers)
        return *((out,) if isinstance(out, Tensor) else out), *(None for _ in ctx.numbers)

    torch.library.register_autograd(made.name(), backward, setup_context=setup)
