"""All axes of a convolution block by block, a block of heads of all images at a time: the form for CPUs.

Each head has its own matrix, so a batched product wants the heads first in memory. A block is copied there once, with the
images beside the last axis: the products along the first and the last axis are then of all images at once, and need no other
copy. A block stays in the cache from its first product to its last, skip included. The backward pass computes the
inner signals again, in the cache, instead of storing them, and so the matrices.

Shapes: R rank, C kernels per head, B batch, H heads, n_i samples along axis i; a block is (h, n_1, ..., n_{D-1}, B, n_D), h of
the heads.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from s4nd.conv.fft import Spectrum
from s4nd.conv.layout import like_output
from s4nd.conv.toeplitz import Toeplitz
from s4nd.ops.blocks import head_blocks

OPERATORS = {"toeplitz": Toeplitz, "fft": Spectrum}


def forward(u: Tensor, kernels: Sequence[Tensor], skip: Tensor | None, along: Sequence[str]) -> Tensor:
    """y = sum_r k_r^(1) * ... * k_r^(D) * u + skip u.

    Args:
        u: (B, H, n_1, ..., n_D), in any memory layout, which y then has too (torch's channels_last among them).
        kernels: D tensors (R, C, H, 2n_i - 1).
        skip: (C, H) or None.
        along: D names of OPERATORS.

    Returns:
        (B, C, H, n_1, ..., n_D).
    """
    (R, C), D = kernels[0].shape[:2], len(kernels)
    y = like_output(u, C)
    for heads, (x, total, *inner) in _blocks(u, D + 1):
        _read(u[:, heads], x, total)
        for c in range(C):
            if skip is not None:
                torch.mul(x, _factors(skip[c, heads], x), out=total)
            for r in range(R):
                operators = _operators(kernels, along, r, c, heads)
                operators[0](_inner_signals(x, operators, inner)[0], 0, total, add=r > 0 or skip is not None)
            y[:, c, heads].copy_(_from_block(total))
    return y


def backward(
    grad: Tensor,
    u: Tensor,
    kernels: Sequence[Tensor],
    skip: Tensor | None,
    along: Sequence[str],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of u, skip and the kernels, given that of y (B, C, H, n_1, ..., n_D); None where `needed` is false."""
    (R, C), D = kernels[0].shape[:2], len(kernels)
    of_u, of_skip, *of_k = needed
    grad_u = torch.empty_like(u) if of_u else None
    grad_skip = torch.empty_like(skip) if of_skip and skip is not None else None
    grad_k = [torch.empty_like(k) if wanted else None for k, wanted in zip(kernels, of_k, strict=True)]
    for heads, (x, g, total, spare, *inner) in _blocks(u, D + 4):
        _read(u[:, heads], x, spare)
        for c in range(C):
            _read(grad[:, c, heads], g, spare)
            if grad_skip is not None:
                grad_skip[c, heads] = torch.mul(g, x, out=spare).flatten(1).sum(1)
            if of_u and skip is not None:
                total.addcmul_(g, _factors(skip[c, heads], g)) if c else torch.mul(
                    g, _factors(skip[c, heads], g), out=total
                )
            for r in range(R):
                operators = _operators(kernels, along, r, c, heads)
                signals, z = _inner_signals(x, operators, inner), g
                for axis, operator in enumerate(operators):
                    if (of_axis := grad_k[axis]) is not None:
                        of_axis[r, c, heads] = operator.kernel_grad(z, signals[axis], axis)
                    if axis < D - 1:
                        z = operator.adjoint(z, axis, inner[-1] if axis % 2 else spare)
                    elif of_u:
                        operator.adjoint(z, axis, total, add=skip is not None or (c, r) != (0, 0))
        if grad_u is not None:
            grad_u[:, heads].copy_(_from_block(total))
    return grad_u, grad_skip, *grad_k


def _blocks(u: Tensor, buffers: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of heads, each with so many tensors of a block's size, the same for all: new memory costs more than a product."""
    slices = list(head_blocks(u.shape[1], 2 * u[:, 0].numel(), u.device))
    shape = _to_block(u[:, slices[0]]).shape
    memory = [u.new_empty(shape) for _ in range(buffers)]
    for heads in slices:
        yield heads, [x[: heads.stop - heads.start] for x in memory]


def _to_block(u: Tensor) -> Tensor:
    return u.movedim(0, -2)


def _read(u: Tensor, x: Tensor, spare: Tensor) -> None:
    """Copy (B, h, n_1, ..., n_D) to a block x; `spare` is a block that may be overwritten."""
    if (
        u.stride(1) == 1
    ):  # heads last in memory: in the order of a block first, then a plain transposition, twice as fast as one step
        heads_last = spare.view(-1).view(*x.shape[1:], len(x))
        heads_last.copy_(_to_block(u).movedim(0, -1))
        x.view(len(x), -1).copy_(heads_last.view(-1, len(x)).t())
    else:
        x.copy_(_to_block(u))


def _from_block(x: Tensor) -> Tensor:
    return x.movedim(-2, 0)


def _factors(skip: Tensor, x: Tensor) -> Tensor:
    return skip.reshape(-1, *([1] * (x.ndim - 1)))


def _operators(kernels: Sequence[Tensor], along: Sequence[str], r: int, c: int, heads: slice) -> list:
    return [OPERATORS[name](k[r, c, heads]) for name, k in zip(along, kernels, strict=True)]


def _inner_signals(x: Tensor, operators: Sequence, out: Sequence[Tensor]) -> list[Tensor]:
    """What each axis's operator is applied to: the block, last, and before it the products of all later axes."""
    signals = [x]
    for axis in range(len(operators) - 1, 0, -1):
        signals.insert(0, operators[axis](signals[0], axis, out[axis - 1]))
    return signals
