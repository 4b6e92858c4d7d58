"""All axes of a convolution block by block, a block of heads of one image at a time: the form for CPUs.

A batched product over all images would have to copy the signal, to put the heads first, or the matrices, once per image; and
it would move the whole signal through memory once per axis. Here every product is batched over the heads of a block, reads
and writes it where it lies, and the skip is added in passing: a block stays in the cache from its first product to its last.
The backward pass computes the inner signals again, in the cache, instead of storing them.

Shapes: R rank, C kernels per head, B batch, H heads, n_i samples along axis i; a block is (h, n_1, ..., n_D), h of the heads.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from s4nd.ops import autodiff
from s4nd.ops.blocks import head_blocks


def blocked_conv(u: Tensor, matrices: Sequence[Tensor], skip: Tensor | None = None) -> Tensor:
    """y = sum_r T_r^(1) ... T_r^(D) u + skip u.

    Args:
        u: (B, H, n_1, ..., n_D), in any memory layout, which y then has too (torch's channels_last among them).
        matrices: D tensors (R, C, H, n_i, n_i).
        skip: (C, H) or None.

    Returns:
        (B, C, H, n_1, ..., n_D).
    """
    return _Blocked.apply(u, skip, *matrices)


def definition(u: Tensor, skip: Tensor | None, *matrices: Tensor) -> Tensor:
    """The same by one product per axis over all images."""
    y = u[None, None]  # (R, C, B, H, *axes)
    for axis in range(-1, -len(matrices) - 1, -1):
        y = torch.einsum("rcbh...s,rchts->rcbh...t", y.movedim(axis, -1), matrices[axis]).movedim(-1, axis)
    y = y.sum(0).transpose(0, 1)
    return y if skip is None else y + skip.reshape(*skip.shape, *([1] * len(matrices))) * u[:, None]


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(u: Tensor, skip: Tensor | None, *matrices: Tensor) -> Tensor:
        C = matrices[0].shape[1]
        y = torch.empty_like(u)[:, None] if C == 1 else u.new_empty(len(u), C, *u.shape[1:])
        for heads in _blocks(u):
            parts = _parts(matrices, heads)
            factors = None if skip is None else _factors(skip[:, heads], u.ndim - 2)
            inner = [_like_block(u, heads) for _ in matrices[1:]]
            for block, outputs in zip(u[:, heads], y[:, :, heads], strict=True):
                block = block.contiguous()
                for c, output in enumerate(outputs):
                    target = output if output.is_contiguous() else _like_block(u, heads)
                    if factors is not None:
                        torch.mul(block, factors[c], out=target)
                    for r, T in enumerate(parts[c]):
                        x = _inner_signals(block, T, inner)[0]
                        _apply(T[0], x, 0, target, add=r > 0 or factors is not None)
                    if target is not output:
                        output.copy_(target)
        return y

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, skip, *matrices = ctx.saved_tensors
        if autodiff.wanted():
            return autodiff.by_definition(definition, (u, skip, *matrices), grad)
        grads = [
            None if not needed else torch.empty_like(x) if i == 0 else torch.zeros_like(x)
            for i, (x, needed) in enumerate(zip((u, skip, *matrices), ctx.needs_input_grad, strict=True))
        ]
        for heads in _blocks(u):
            _block_backward(heads, u, skip, matrices, grad, *grads)
        return tuple(grads)


def _block_backward(
    heads: slice,
    u: Tensor,
    skip: Tensor | None,
    matrices: list[Tensor],
    grad: Tensor,
    grad_u: Tensor | None,
    grad_skip: Tensor | None,
    *grad_T: Tensor | None,
) -> None:
    """Write grad_u, and add to grad_skip and grad_T, what belongs to these heads; None for what is not wanted."""
    D = len(matrices)
    inner = [_like_block(u, heads) for _ in range(D - 1)]
    spare = [_like_block(u, heads) for _ in range(min(2, D))]
    parts, outer = _parts(matrices, heads), _parts(grad_T, heads)
    transposed = _parts([T.mT for T in matrices], heads)
    factors = None if skip is None else _factors(skip[:, heads], D)
    for b, block in enumerate(u[:, heads]):
        block = block.contiguous()
        into = None if grad_u is None else grad_u[b, heads]
        target = into if into is None or into.is_contiguous() else _like_block(u, heads)
        for c, output_grad in enumerate(grad[b, :, heads]):
            output_grad = output_grad.contiguous()
            if grad_skip is not None:
                grad_skip[c, heads] += torch.mul(output_grad, block, out=spare[0]).flatten(1).sum(1)
            if factors is not None and target is not None:
                target.addcmul_(output_grad, factors[c]) if c else torch.mul(output_grad, factors[c], out=target)
            for r, T in enumerate(parts[c]):
                g, signals = output_grad, _inner_signals(block, T, inner)
                for axis in range(D):
                    if grad_T[axis] is not None:
                        _accumulate_outer(g, signals[axis], axis, outer[c][r][axis])
                    if axis < D - 1:
                        g = _apply(transposed[c][r][axis], g, axis, spare[axis % 2], add=False)
                    elif target is not None:
                        _apply(transposed[c][r][axis], g, axis, target, add=skip is not None or (c, r) != (0, 0))
        if target is not into:
            into.copy_(target)


def _blocks(u: Tensor) -> Iterator[slice]:
    return head_blocks(u.shape[1], u[0, 0].numel(), u.device)


def _like_block(u: Tensor, heads: slice) -> Tensor:
    return u.new_empty(u[0, heads].shape)


def _factors(skip: Tensor, D: int) -> Tensor:
    return skip.reshape(*skip.shape, *([1] * D))


def _parts(matrices: Sequence[Tensor | None], heads: slice) -> list[list[list[Tensor | None]]]:
    """The D matrices of each c and r, [c][r][axis], from tensors (R, C, H, n_i, n_i)."""
    R, C = next((T.shape[:2] for T in matrices if T is not None), (0, 0))
    return [[[None if T is None else T[r, c, heads] for T in matrices] for r in range(R)] for c in range(C)]


def _inner_signals(block: Tensor, parts: list[Tensor], out: list[Tensor]) -> list[Tensor]:
    """What the product along each axis is applied to: the block, last, and before it the products of all later axes."""
    signals = [block]
    for axis in range(len(parts) - 1, 0, -1):
        signals.insert(0, _apply(parts[axis], signals[0], axis, out[axis - 1], add=False))
    return signals


def _apply(T: Tensor, x: Tensor, axis: int, out: Tensor, *, add: bool) -> Tensor:
    """T (h, n, n) along an axis of x (h, n_1, ..., n_D), written to or added to `out`."""
    if 0 < axis < x.ndim - 2:
        product = torch.bmm(T, _columns(x, axis)).unflatten(-1, (-1, math.prod(x.shape[axis + 2 :]))).transpose(1, 2)
        target = out.view(product.shape)
        return (target.add_(product) if add else target.copy_(product)).view(x.shape)
    last = axis == x.ndim - 2
    target, pair = (_rows(out), (_rows(x), T.mT)) if last else (_columns(out, 0), (T, _columns(x, 0)))
    if add:
        torch.baddbmm(target, *pair, out=target)
    else:
        torch.bmm(*pair, out=target)
    return out


def _accumulate_outer(g: Tensor, x: Tensor, axis: int, out: Tensor) -> None:
    """out[t, s] += sum over the other axes of g[t] x[s]: (h, n, n)."""
    last = axis == x.ndim - 2
    pair = (_rows(g).mT, _rows(x)) if last else (_columns(g, axis), _columns(x, axis).mT)
    torch.baddbmm(out, *pair, out=out)


def _rows(x: Tensor) -> Tensor:
    """(h, all other axes, n_D), a view."""
    return x.view(len(x), -1, x.shape[-1])


def _columns(x: Tensor, axis: int) -> Tensor:
    """(h, n, all other axes) for an axis but the last: a view for the first axis. For one between others a copy, which costs
    less than a product for each index before it."""
    h, n = len(x), x.shape[axis + 1]
    return x.view(h, math.prod(x.shape[1 : axis + 1]), n, -1).transpose(1, 2).flatten(2)
