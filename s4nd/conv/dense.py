"""N-D convolution by its definition: the outer product of the 1-D kernels, summed directly. The oracle; small sizes only."""

import itertools

import torch
from torch import Tensor


def outer_product(kernels: list[Tensor]) -> Tensor:
    """K = sum_r k_r^(1) x ... x k_r^(D): D tensors (R, C, H, 2n_i - 1) -> (C, H, 2n_1 - 1, ..., 2n_D - 1)."""
    K, *rest = kernels
    for k in rest:
        K = K[..., None] * k.reshape(*k.shape[:3], *([1] * (K.ndim - 3)), k.shape[-1])
    return K.sum(0)


def dense_conv(u: Tensor, kernels: list[Tensor]) -> Tensor:
    """y[t] = sum_s K[t - s] u[s], zeros outside: u (B, H, *axes), kernels as in `separable_conv` -> (B, C, H, *axes)."""
    K = outer_product(kernels)
    y = torch.zeros(u.shape[0], K.shape[0], *u.shape[1:], dtype=u.dtype, device=u.device)
    for lag in itertools.product(*(range(-(n - 1), n) for n in u.shape[2:])):
        at: tuple = (..., *(n - 1 + i for i, n in zip(lag, u.shape[2:], strict=True)))
        to: tuple = (..., *(slice(max(i, 0), n + min(i, 0)) for i, n in zip(lag, u.shape[2:], strict=True)))
        source: tuple = (..., *(slice(max(-i, 0), n + min(-i, 0)) for i, n in zip(lag, u.shape[2:], strict=True)))
        value = K[at]  # (C, H)
        y[to] += value.reshape(*value.shape, *([1] * len(lag))) * u[:, None][source]
    return y
