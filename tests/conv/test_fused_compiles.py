"""The fused kernels, compiled for GPUs that are not there: registers, shared memory, tensor cores.

`dispatched` names every shape and type that is started on a GPU. TELLING of them, those that take most, are compiled by
the test, and all by `python -m tests.compiling tests.conv.test_fused_compiles --every`. float32 is TF32 here, but for
"ieee", whose products have no tensor cores.
"""

import itertools

import pytest
import torch

from s4nd.conv import fused
from s4nd.conv.choice import plane_tile
from tests.compiling import SHARED, compile_for, compiled_by

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Grids that have all tiles: rows and columns, aligned or not.
PLANES = {"64x64/4": (56, 56), "32x32/4": (28, 28), "32x32/1": (27, 27), "32x16/4": (12, 12), "32x16/1": (7, 7)}
FLOATS = {n: "*fp32" for n in ("k", "k1", "k2", "skip", "of_k1", "of_k2", "of_skip", "out")} | {"scale": "fp32"}
TELLING = {
    "plane fp16 64x64/4",
    "plane bf16 64x64/4 pooled",
    "plane bf16 64x64/4 adjoint",
    "plane fp32 64x64/4 pooled",
    "plane bf16 32x32/1 pooled pairs",
    "plane fp32 32x32/1 adjoint pairs",
    "plane bf16 32x16/1",
    "gradients fp16 64x64/4 of_x of_k1 of_k2 of_skip",
    "gradients bf16 64x64/4 pooled of_x of_k1 of_k2 of_skip",
    "gradients bf16 64x64/4 pooled of_k2 of_skip",
    "gradients fp32 64x64/4 pooled of_k1",
    "gradients fp32 64x64/4 pooled of_k2 of_skip",
    "gradients fp32 32x32/1 pooled of_x of_k1 of_k2 of_skip",
    "gradients bf16 32x16/1 of_x of_k1 of_k2 of_skip",
    "along fp16 64 skip",
    "along bf16 64 last skip",
    "along fp32 64 last skip",
    "along fp32 ieee 64 last skip",
    "along gradient bf16 64 last",
    "along gradient fp32 64",
    "along gradient fp32 ieee 64",
}


def named(*parts):
    return " ".join(part for part in parts if part)


def dispatched(capability):
    """(name, kernel, arguments, options) of everything that is started on a GPU of this compute capability."""
    from s4nd.conv import _triton_axes, _triton_plane

    integers = {n: "i32" for n in (*_triton_plane.SIZES, *_triton_axes.SIZES)}
    for dtype, (tile, size) in itertools.product(TYPES, PLANES.items()):
        rows, N, unit = plane_tile(size, (1, 1), 1)
        pointers = {n: f"*{dtype}" for n in ("x", "y", "g", "of_x")}
        shape = {"UNIT": unit, "ROWS": rows, "N": N, "PRECISION": "tf32"}
        pairs = (False, True) if plane_tile(size, (1, 1), 2) else (False,)
        for pooled, adjoint, several in itertools.product((False, True), (False, True), pairs):
            name = named("plane", dtype, tile, adjoint and "adjoint", pooled and "pooled", several and "pairs")
            flags = {"ADJOINT": adjoint, "POOLED": pooled, "ONE": not several}
            options = _triton_plane.compiler_options(rows, unit, not several)
            yield name, _triton_plane.plane, integers | FLOATS | pointers | shape | flags, options
        of = ("of_x", "of_k1", "of_k2", "of_skip")
        together = _triton_plane.in_one(TYPES[dtype], rows, divmod(capability, 10))
        started = [of, of[1:]] if together else [of[1:2], of[2:]]
        for pooled, results in itertools.product((False, True), started):
            name = named("gradients", dtype, tile, pooled and "pooled", *results)
            absent = {n: None for n in of if n not in results}
            arguments = integers | FLOATS | pointers | shape | {"POOLED": pooled} | absent
            yield name, _triton_plane.plane_gradients, arguments, _triton_plane.compiler_options(rows, unit, True)
    precisions = [(dtype, precision) for dtype in TYPES for precision in (["ieee", ""] if dtype == "fp32" else [""])]
    for (dtype, precision), n, last in itertools.product(precisions, (16, 32, 256), (False, True)):
        torch.set_float32_matmul_precision("highest" if precision else "high")
        rows, depth, products = _triton_axes.tiles(TYPES[dtype], n)
        pointers = {n: f"*{dtype}" for n in ("x", "y", "z", "v")}
        arguments = integers | FLOATS | pointers | {"LAST": last, "ROWS": rows, "PRECISION": products}
        name = (dtype, precision, str(rows), last and "last")
        for skip in ({}, {"v": None, "skip": None}):
            full = arguments | {"DEPTH": depth, "LINES": _triton_axes.LINES} | skip
            yield named("along", *name, not skip and "skip"), _triton_axes.along, full, _triton_axes.OPTIONS
        yield (
            named("along gradient", *name),
            _triton_axes.along_gradient,
            arguments | {"LINES": depth},
            _triton_axes.OPTIONS,
        )


def kernels(every):
    for capability in SHARED:
        for name, kernel, arguments, options in dispatched(capability):
            if every or name in TELLING:
                yield compile_for(capability, name, kernel, arguments, **options)


@pytest.mark.slow
def test_no_register_is_spilled_and_products_are_of_tensor_cores():
    pytest.importorskip("triton")
    compiled = compiled_by(__name__)
    assert {c.name for c in compiled} == TELLING
    assert {c.capability for c in compiled} == set(SHARED)
    for c in compiled:
        assert c.spilled == 0, c
        assert c.shared <= SHARED[c.capability], c
        assert (c.tensor_cores > 0) is ("ieee" not in c.name), c


def test_least_capability_is_one_that_is_compiled_for():
    assert divmod(min(SHARED), 10) == fused.CAPABILITY
