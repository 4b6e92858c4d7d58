"""The convolution in kernels of Triton: where they can run, and in which of their two forms.

"plane" has both axes of a 2-D grid in one kernel, with skip and pooling (_triton_plane.py); "axes" goes axis by axis
(_triton_axes.py).
"""

import logging
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from s4nd.conv.choice import FUSED_AXIS, plane_tile
from s4nd.conv.definition import definition
from s4nd.ops.constant import constant
from s4nd.ops.dispatch import triton_refusal

FORMS = ("plane", "axes")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEADS, SAMPLES = 2**19, 2**31  # within a tile, and for the samples of a head, indices are of 32 bits
CAPABILITY = (8, 0)  # the least for which the kernels are known to compile as they should

_logger = logging.getLogger("s4nd")


def refusal(u: Tensor, kernels: Sequence[Tensor]) -> str | None:
    """Why the fused form cannot convolve u (B, H, *axes) with kernels (R, C, H, 2n_i - 1), or None."""
    if u.dtype not in DTYPES:
        return f"it takes float32, float16 and bfloat16, got {u.dtype}"
    if max(u.shape[2:]) > FUSED_AXIS:
        return f"it takes axes of at most {FUSED_AXIS} samples, got the grid {tuple(u.shape[2:])}"
    if kernels[0].shape[:3].numel() >= HEADS:
        return f"it takes fewer than {HEADS} kernels (R C H), got {kernels[0].shape[:3].numel()}"
    if math.prod(u.shape) // u.shape[1] >= SAMPLES:
        return f"it takes fewer than {SAMPLES} samples of a head, got a signal {tuple(u.shape)}"
    return device_refusal(u.device)


@constant
def device_refusal(device: torch.device) -> str | None:
    """Why no fused form can run on this device, found by a small run; None if they can. A GPU's is logged once."""
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    return _device_refusal(device)


@cache
def _device_refusal(device: torch.device) -> str | None:
    reason = triton_refusal(device)
    if reason is None and device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < CAPABILITY:
        reason = f"it needs a GPU of compute capability {CAPABILITY} or higher, got {found}"
    if reason is None:
        try:
            reason = _small_run(device)
        except Exception as error:  # of a compiler or a driver, in many ways
            reason = f"a small run failed: {error!r}"
    if device.type == "cuda" and reason:
        _logger.warning("convolutions on %s are not fused: %s", device, reason)
    return reason


def _small_run(device: torch.device) -> str | None:
    """What is wrong with small convolutions on this device, values and gradients; None if nothing is."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        for form, size in (("plane", (7, 5)), ("plane", (33, 36)), ("axes", (5, 70))):
            wave = lambda *shape: torch.arange(math.prod(shape), dtype=torch.float64).view(shape).mul(0.7).sin().half()  # noqa: E731
            exact = [wave(2, 1, *size), wave(1, 1), *(wave(1, 1, 1, 2 * n - 1) for n in size)]
            u, skip, *kernels = (x.to(device) if i == 0 else x.to(device).float() for i, x in enumerate(exact))
            y = forward(form, u, kernels, skip, (1, 1))
            results = [y, *backward(form, u[:, None], u, kernels, skip, (1, 1), [True] * 4)]
            with torch.enable_grad():
                u, skip, *kernels = leaves = [x.double().requires_grad_() for x in exact]
                right = definition(u, kernels, skip, ["toeplitz"] * 2)
                grads = torch.autograd.grad(right, leaves, u[:, None].detach())
            for name, mine, e in zip(("value", "u", "skip", "k1", "k2"), results, (right, *grads), strict=True):
                # Kernels and what lies between two products are rounded in float16, and so is the result.
                if mine is None or not torch.allclose(
                    mine.detach().cpu().double(), e.detach(), rtol=0, atol=4e-3 * e.abs().max().item()
                ):
                    return f"{name} of a small convolution ({form}, {size}) is wrong"
    return None


def form(u: Tensor, kernels: Sequence[Tensor], pool: Sequence[int]) -> str:
    """Which form: products in float32 without TF32 have no tensor cores, and no room for a whole plane in registers."""
    tensor_cores = u.dtype.itemsize == 2 or torch.get_float32_matmul_precision() != "highest"
    fits = u.ndim == 4 and plane_tile(u.shape[2:], pool, kernels[0].shape[:2].numel()) is not None
    return "plane" if fits and tensor_cores else "axes"


def forward(form: str, u: Tensor, kernels: Sequence[Tensor], skip: Tensor | None, pool: Sequence[int]) -> Tensor:
    """u (B, H, *axes), kernels (R, C, H, 2n_i - 1) and skip (C, H) or None, both float32 -> (B, C, H, *axes), contiguous,
    pooled; "axes" takes pools of 1 only."""
    if form == "plane":
        from s4nd.conv import _triton

        return _triton.forward(u, kernels, skip, pool)
    from s4nd.conv import _triton_axes

    return _triton_axes.forward(u, kernels, skip)


def backward(
    form: str,
    grad: Tensor,
    u: Tensor,
    kernels: Sequence[Tensor],
    skip: Tensor | None,
    pool: Sequence[int],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of u, skip and the kernels, contiguous, given that of y; None where `needed` is false."""
    if form == "plane":
        from s4nd.conv import _triton

        grads = _triton.backward(grad, u, kernels, skip, pool, needed)
    else:
        from s4nd.conv import _triton_axes

        grads = _triton_axes.backward(grad, u, kernels, skip, needed)
    return [None if g is None else g.contiguous() for g in grads]
