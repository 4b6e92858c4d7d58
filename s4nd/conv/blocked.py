"""All axes of a convolution image by image, each image in the cache from its first product to its last: the form for CPUs.

A batched product over all images would have to copy the signal, to put the heads first, or the matrices, once per image; and
it would move the whole signal through memory once per axis. Here every product is batched over the heads of one image, reads
and writes it where it lies, and the skip is added in passing. The backward pass computes the inner signals again, in the cache,
instead of storing them.

Shapes: R rank, C kernels per head, B batch, H heads, n_i samples along axis i; an image is (H, n_1, ..., n_D).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from s4nd.ops import double_backward


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
        inner = [_like_image(u) for _ in matrices[1:]]
        parts = _parts(matrices)
        for image, outputs in zip(u, y, strict=True):
            image = image.contiguous()
            for c, output in enumerate(outputs):
                target = output if output.is_contiguous() else _like_image(u)
                if skip is not None:
                    _scale(image, skip[c], target)
                for r, (first, *_) in enumerate(parts[c]):
                    x = _inner_signals(image, parts[c][r], inner)[0]
                    _apply(first, x, 0, target, add=r > 0 or skip is not None)
                if target is not output:
                    output.copy_(target)
        return y

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, skip, *matrices = ctx.saved_tensors
        if double_backward.wanted():
            return double_backward.by_definition(definition, (u, skip, *matrices), grad)
        grad_u = torch.empty_like(u) if ctx.needs_input_grad[0] else None
        grad_skip = torch.zeros_like(skip) if ctx.needs_input_grad[1] else None
        grad_T = [
            torch.zeros_like(T) if needed else None
            for T, needed in zip(matrices, ctx.needs_input_grad[2:], strict=True)
        ]
        D = len(matrices)
        inner, spare = [_like_image(u) for _ in range(D - 1)], [_like_image(u) for _ in range(min(2, D))]
        parts, transposed, outer = _parts(matrices), _parts([T.mT for T in matrices]), _parts(grad_T)
        for b, image in enumerate(u):
            image = image.contiguous()
            into = None if grad_u is None else grad_u[b]
            target = into if into is None or into.is_contiguous() else _like_image(u)
            for c, output_grad in enumerate(grad[b]):
                output_grad = output_grad.contiguous()
                if grad_skip is not None:
                    grad_skip[c] += torch.mul(output_grad, image, out=spare[0]).flatten(1).sum(1)
                if skip is not None and target is not None:
                    _scale(output_grad, skip[c], target, add=c > 0)
                for r in range(len(parts[c])):
                    g = output_grad
                    signals = _inner_signals(image, parts[c][r], inner)
                    for axis in range(D):
                        if grad_T[axis] is not None:
                            _accumulate_outer(g, signals[axis], axis, outer[c][r][axis])
                        if axis < D - 1:
                            g = _apply(transposed[c][r][axis], g, axis, spare[axis % 2], add=False)
                        elif target is not None:
                            add = skip is not None or (c, r) != (0, 0)
                            _apply(transposed[c][r][axis], g, axis, target, add=add)
            if target is not into:
                into.copy_(target)
        return grad_u, grad_skip, *grad_T


def _like_image(u: Tensor) -> Tensor:
    return u.new_empty(u.shape[1:])


def _parts(matrices: Sequence[Tensor | None]) -> list[list[list[Tensor | None]]]:
    """The D matrices of each c and r, [c][r][axis], from tensors (R, C, H, n_i, n_i)."""
    R, C = next(T.shape[:2] for T in matrices if T is not None) if any(T is not None for T in matrices) else (0, 0)
    return [[[None if T is None else T[r, c] for T in matrices] for r in range(R)] for c in range(C)]


def _inner_signals(image: Tensor, parts: list[Tensor], out: list[Tensor]) -> list[Tensor]:
    """What the product along each axis is applied to: the image, last, and before it the products of all later axes."""
    signals = [image]
    for axis in range(len(parts) - 1, 0, -1):
        signals.insert(0, _apply(parts[axis], signals[0], axis, out[axis - 1], add=False))
    return signals


def _apply(T: Tensor, x: Tensor, axis: int, out: Tensor, *, add: bool) -> Tensor:
    """T (H, n, n) along an axis of x (H, n_1, ..., n_D), written to or added to `out`."""
    for left, target in zip(_slices(x, axis), _slices(out, axis), strict=True):
        pair = (left, T.mT) if axis == x.ndim - 2 else (T, left)
        if add:
            torch.baddbmm(target, *pair, out=target)
        else:
            torch.bmm(*pair, out=target)
    return out


def _accumulate_outer(g: Tensor, x: Tensor, axis: int, out: Tensor) -> None:
    """out[t, s] += sum over the other axes of g[t] x[s]: (H, n, n)."""
    for left, right in zip(_slices(g, axis), _slices(x, axis), strict=True):
        pair = (left.mT, right) if axis == x.ndim - 2 else (left, right.mT)
        torch.baddbmm(out, *pair, out=out)


def _slices(x: Tensor, axis: int) -> list[Tensor]:
    """The matrices of one product each: (H, rows, n) along the last axis, else (H, n, columns) for each index before it."""
    if x.ndim == 3:
        return [x]
    H, n = len(x), x.shape[axis + 1]
    if axis == x.ndim - 2:
        return [x.view(H, -1, n)]
    return list(x.view(H, math.prod(x.shape[1 : axis + 1]), n, -1).unbind(1))


def _scale(x: Tensor, factor: Tensor, out: Tensor, *, add: bool = False) -> None:
    factor = factor.view(-1, *([1] * (x.ndim - 1)))
    if add:
        out.addcmul_(x, factor)
    else:
        torch.mul(x, factor, out=out)
