"""The convolution of a plane by the kernels of _triton_plane.py: how many programs they are started with, and on what.

Shapes: B images, H heads, C kernels per head, R rank, n_i samples along axis i, m_i = n_i // p_i after pooling.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from s4nd.conv._triton_plane import compiler_options, in_one, plane, plane_gradients
from s4nd.conv._triton_tiles import by_pair, central
from s4nd.conv.choice import plane_tile
from s4nd.ops._triton import at_work_on

# Programs to fill a card with, before one takes more stacks than one.
PROGRAMS, GRADIENT_PROGRAMS = 4096, 512


def forward(u: Tensor, kernels: Sequence[Tensor], skip: Tensor | None, pool: Sequence[int]) -> Tensor:
    """u (B, H, n_1, n_2), 2 kernels (R, C, H, 2n_i - 1) and skip (C, H), float32 -> (B, C, H, m_1, m_2), means over `pool`."""
    B, C = len(u), kernels[0].shape[1]
    y = u.new_empty(B, C, u.shape[1], *(n // p for n, p in zip(u.shape[2:], pool, strict=True)))
    _apply(u.contiguous()[:, None], kernels, skip, y, pool, adjoint=False)
    return y


def backward(
    grad: Tensor,
    u: Tensor,
    kernels: Sequence[Tensor],
    skip: Tensor | None,
    pool: Sequence[int],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of u, skip and the kernels, float32 but that of u, given that of y; None where `needed` is false."""
    of_u, of_skip, *of_kernels = needed
    (R, C, H), B = kernels[0].shape[:3], len(u)
    u, grad = u.contiguous(), grad.contiguous()
    rows, N, unit = _tile(u.shape[2:], pool, R * C)
    capability = torch.cuda.get_device_capability(u.device) if u.is_cuda else (9, 0)
    together = in_one(u.dtype, rows, capability)
    grad_u = torch.empty_like(u) if of_u else None
    with_u = of_u and together and R * C == 1 and of_kernels[0]
    if grad_u is not None and not with_u:
        _apply(grad, kernels, skip, grad_u[:, None], pool, adjoint=True)
    part, parts = _parts(B, rows // u.shape[2], R * C * H, GRADIENT_PROGRAMS)
    scratch = [
        u.new_empty(parts, C, R, H, *size, dtype=torch.float32) if wanted else None
        for size, wanted in zip(((), (2 * rows,), (2 * N,)), (of_skip, *of_kernels), strict=True)
    ]
    all_of = grad_u if with_u else None, scratch[1], scratch[2], scratch[0]
    launches = [all_of] if together else [(None, scratch[1], None, None), (None, None, scratch[2], scratch[0])]
    k1, k2 = by_pair(kernels)
    sizes, options = _geometry(u, pool, R * C)
    for of in launches:
        if any(x is not None for x in of):
            with at_work_on(u.device):
                plane_gradients[(H * R * C, parts)](
                    grad,
                    u,
                    k1,
                    k2,
                    skip,
                    *of,
                    B,
                    part,
                    H,
                    R * C,
                    R,
                    *sizes,
                    **options,
                    **compiler_options(rows, unit, True),
                )
    grad_skip = None if scratch[0] is None else scratch[0][:, :, 0].sum(0)  # which every r found
    lags = [
        central(x.sum(0), n).transpose(0, 1) if x is not None else None
        for x, n in zip(scratch[1:], u.shape[2:], strict=True)
    ]
    return [grad_u, grad_skip, *lags]


def _apply(
    x: Tensor, kernels: Sequence[Tensor], skip: Tensor | None, y: Tensor, pool: Sequence[int], *, adjoint: bool
) -> None:
    """x (B, J, H, .., ..) -> y (B, O, H, .., ..); one of J and O is C, or both are 1."""
    (R, C, H), (B, J), O = kernels[0].shape[:3], x.shape[:2], y.shape[1]  # noqa: E741
    full = y if adjoint else x
    sizes, options = _geometry(full[:, 0], pool, R * C)
    part, parts = _parts(B, options["ROWS"] // full.shape[3], H * O, PROGRAMS)
    S = R * C // O
    with at_work_on(x.device):
        plane[(H * O, parts)](
            x, *by_pair(kernels), skip, y, B, part, H, O, S, J, R, *sizes, ADJOINT=adjoint, ONE=S == 1, **options,
            **compiler_options(options["ROWS"], options["UNIT"], S == 1),
        )  # fmt: skip


def _tile(size: Sequence[int], pool: Sequence[int], pairs: int) -> tuple[int, int, int]:
    """`plane_tile` of a plane that fits, which is asked before one comes here."""
    tile = plane_tile(size, pool, pairs)
    if tile is None:
        raise ValueError(f"no tile holds a plane of {tuple(size)} samples with {pairs} kernels of a head and {pool=}")
    return tile


def _geometry(full: Tensor, pool: Sequence[int], pairs: int) -> tuple[tuple, dict]:
    """Arguments of both kernels from n1 on, for a signal (B, H, n_1, n_2) before pooling."""
    (n1, n2), (p1, p2) = full.shape[2:], pool
    rows, N, unit = _tile((n1, n2), pool, pairs)
    precision = "tf32"  # float32 is here only where that is allowed, see conv/fused.py
    options = {"POOLED": p1 * p2 > 1, "UNIT": unit, "ROWS": rows, "N": N, "PRECISION": precision}
    return (n1, n2 // unit, n1 // p1, n2 // p2 // unit, p1, p2, 1 / (p1 * p2)), options


def _parts(images: int, stack: int, heads: int, programs: int) -> tuple[int, int]:
    """Images of a program, whole stacks, and how many programs share the images of a head."""
    stacks = -(-images // stack)
    part = stack * max(1, stacks * heads // programs)
    return part, -(-images // part)
