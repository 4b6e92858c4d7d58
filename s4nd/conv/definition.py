"""The convolution by operations that torch's transforms, compilers and exporters know, over all images at once.

What the functions of `own.py` compute faster on a CPU, they compute everywhere else: on other devices, in half precision, and
where derivatives of another kind than a backward pass are asked for.

Shapes: R rank, C kernels per head, B batch, H heads, n_i samples along axis i.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from s4nd.conv.depthwise import depthwise_conv
from s4nd.conv.fft import fft_along
from s4nd.conv.kronecker import one_matrix
from s4nd.conv.toeplitz import matrix_along, toeplitz_matrix


def definition(u: Tensor, kernels: Sequence[Tensor], skip: Tensor | None, along: Sequence[str]) -> Tensor:
    """y = sum_r k_r^(1) * ... * k_r^(D) * u + skip u, in the dtype of u.

    Args:
        u: (B, H, n_1, ..., n_D).
        kernels: D tensors (R, C, H, 2n_i - 1).
        skip: (C, H) or None.
        along: the algorithm of each axis, see conv/choice.py.

    Returns:
        (B, C, H, n_1, ..., n_D), contiguous.
    """
    if along[0] == "depthwise":
        y = depthwise_conv(u, kernels)
    elif along[0] == "kronecker":
        K = one_matrix(kernels).to(u.dtype)
        y = torch.einsum("bhs,chts->bcht", u.flatten(2), K).unflatten(-1, u.shape[2:])
    else:
        y = u[None, None]  # (R, C, B, H, *axes)
        for axis in range(-1, -len(kernels) - 1, -1):
            summed = axis == -len(kernels)
            if along[axis] == "fft":
                y = fft_along(y, kernels[axis], axis, summed=summed)
            else:
                y = matrix_along(y, toeplitz_matrix(kernels[axis]).to(u.dtype), axis, summed=summed)
        # The products may leave the heads first in memory, where every elementwise operation after them would be slow.
        y = y.transpose(0, 1).contiguous()
    if skip is None:
        return y
    return torch.addcmul(y, skip.reshape(*skip.shape, *([1] * len(kernels))), u[:, None]).to(u.dtype)
