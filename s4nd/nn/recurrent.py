"""Recurrent mode of a layer: its causal axis sample by sample, the other axes as one convolution per sample.

    x[h, s] is driven by u[h, s] itself: all ranks and output channels share (A, B), so one state serves them all, and
    y[c, h] = sum_r (k_r^(2) x ... x k_r^(D))_{c,h} * (C_{r,c,h} x[h] + D_{r,c,h} u[h]) over the other axes.

Shapes: B batch, H heads (d_model), R rank, C output channels per head, N states; *axes without the stepped one.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from s4nd.conv import separable_conv
from s4nd.conv.pooling import average_pool
from s4nd.ops.precision import autocast_dtype, without_autocast
from s4nd.ssm.stepping import Step

if TYPE_CHECKING:
    from s4nd.nn.s4nd import S4ND


def step(layer: "S4ND", u: Tensor, state: Tensor | None, n: int | None) -> tuple[Tensor, Tensor]:
    """See S4ND.step."""
    axis = _stepped_axis(layer)
    _check(layer, axis, u, n)
    recurrence = layer.kept_or_computed(("step", axis, n), lambda: _recurrence(layer, axis, n))
    x = recurrence.zero_state(u) if state is None else state
    if x.shape != (*u.shape, recurrence.N):
        raise ValueError(f"step needs a state (*u.shape, N) = {(*u.shape, recurrence.N)}, got {tuple(x.shape)}")
    with without_autocast(u.device.type):
        y, x = recurrence(u, x)  # (B, R C, H, *axes)
    y = _convolve_rest(layer, axis, y.to(u.dtype))
    if layer.D is not None:
        D = layer.D.reshape(*layer.D.shape, *([1] * (u.ndim - 2)))
        y = torch.addcmul(y, D.to(y.dtype), u[:, None].to(y.dtype))
    return average_pool(layer._outputs(y), [p for i, p in enumerate(layer.pool) if i != axis]), x


def _recurrence(layer: "S4ND", axis: int, n: int | None) -> Step:
    rate = 1.0 if n is None else layer.rate(axis, n)
    return layer.kernels[axis].recurrence(n, rate, bandlimit=layer.bandlimit, align=layer.align)


def _convolve_rest(layer: "S4ND", axis: int, y: Tensor) -> Tensor:
    """(B, R C, H, *axes) -> (B, C, H, *axes): the convolution over the other axes, and the sum over the rank.

    Every (r, c, h) is a head of its own here, because the input already differs between them.
    """
    sizes = y.shape[3:]
    if sizes:
        others = [i for i in range(layer.ndim) if i != axis]
        kernels = [layer.kernel_lags(i, n).flatten(0, 2)[None, None] for i, n in zip(others, sizes, strict=True)]
        y = separable_conv(y.flatten(1, 2), kernels, algorithm=layer.algorithm).reshape(y.shape)
    elif y.dtype != torch.float64:  # the full pass rounds here too
        y = y.to(autocast_dtype(y.device.type) or y.dtype)
    return y.unflatten(1, (layer.rank, -1)).sum(1)


def _stepped_axis(layer: "S4ND") -> int:
    if all(layer.bidirectional):
        raise ValueError(
            f"step needs a causal axis (bidirectional False for it), got bidirectional={layer.bidirectional}"
        )
    return layer.bidirectional.index(False)


def _check(layer: "S4ND", axis: int, u: Tensor, n: int | None) -> None:
    if u.ndim != layer.ndim + 1 or u.shape[1] != layer.d_model or 0 in u.shape[2:]:
        shape = ", ".join(["B", f"d_model={layer.d_model}", *(f"n_{i + 1}" for i in range(layer.ndim) if i != axis)])
        raise ValueError(
            f"step along axis {axis + 1} needs u ({shape}), one sample of the whole signal, no axis empty, "
            f"got {tuple(u.shape)}"
        )
    if not u.is_floating_point():
        raise ValueError(f"step needs a floating-point u, got {u.dtype}")
    base, window = layer.base_size[axis], layer.l_max[axis]
    if layer.pool[axis] > 1:
        raise ValueError(f"step needs an axis without pooling, got pool={layer.pool} with axis {axis + 1} stepped")
    if n is None and (base is not None or window is not None):
        name, value = ("base_size", base) if base is not None else ("l_max", window)
        raise ValueError(f"step needs n, the samples of the whole axis {axis + 1}, because of {name}={value}; got None")
    if n is not None and (not isinstance(n, int) or n < 1):
        raise ValueError(f"n must be a positive integer or None, got {n!r}")
    if n is not None and layer.sampling.method(axis) != "continuous" and n != base:
        raise ValueError(
            f"a kernel that is held or folded is no recurrence of its own: step needs n={base}, the trained grid, got n={n}"
        )
    if n is not None and layer.taps(axis, n) < n:
        raise ValueError(
            f"step needs an l_max that covers the axis: a recurrence cannot end a kernel after {layer.taps(axis, n)} of "
            f"n={n} samples, got l_max={window}"
        )
