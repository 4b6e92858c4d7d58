"""The products' kernels, compiled for GPUs that are not there: registers and shared memory.

`dispatched` names every dtype and number of responses of a program that is started; sizes are numbers, and the same for all.
`python -m tests.compiling tests.ops.test_triton_compiles --every` compiles what the test leaves out.
"""

import pytest

from tests.compiling import SHARED, compile_for, compiled_by

TYPES = ("fp32", "fp64")
RESPONSES = (1, 2, 4, 8)


def dispatched():
    """(name, kernel, arguments, options) of everything that is started on a GPU."""
    from s4nd.ops import _triton, _triton_cauchy

    sizes = dict.fromkeys(("J", "H", "N", "L", "z_head"), "i32")
    parts = {"PART": _triton.PART, "STEP": _triton.STEP, "BLOCK_N": _triton.POLES}
    for dtype in TYPES:
        pointers = dict.fromkeys("wgzk", f"*{dtype}") | {"of_z": f"*{dtype}", "m": "*fp64"}
        for J in RESPONSES:
            shape = sizes | {"BLOCK_J": J, "BLOCK": _triton.SAMPLES}
            for centre in (False, True):
                arguments = pointers | shape | {"x": "*fp64", "CENTRE": centre}
                name = f"{dtype} {J} {'centred' if centre else ''}"
                yield f"vandermonde {name}", _triton._vandermonde, arguments, {}
                yield f"vandermonde moments {name}", _triton._vandermonde_moments, arguments | parts, _triton.REGISTERS
            arguments = pointers | shape | {"x": f"*{dtype}"}
            yield f"cauchy {dtype} {J}", _triton_cauchy._cauchy, arguments, {}
            yield f"cauchy moments {dtype} {J}", _triton_cauchy._cauchy_moments, arguments | parts, _triton.REGISTERS
            yield f"cauchy of nodes {dtype} {J}", _triton_cauchy._cauchy_of_nodes, arguments, {}


def kernels(every=False):
    """Compiled; those of most responses, and in float32 of fewest too, or all."""
    for name, kernel, arguments, options in dispatched():
        if every or arguments["BLOCK_J"] == 8 or (arguments["BLOCK_J"] == 1 and arguments["w"] == "*fp32"):
            taken = {n: arguments[n] for n in kernel.arg_names}
            for capability in SHARED:
                yield compile_for(capability, name, kernel, taken, **options)


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("triton")
    return compiled_by("tests.ops.test_triton_compiles")


def test_no_kernel_spills_registers(compiled):
    assert [c for c in compiled if c.spilled] == []


def test_every_kernel_has_the_shared_memory_that_it_takes(compiled):
    assert [c for c in compiled if c.shared > SHARED[c.capability]] == []


def test_every_kernel_is_compiled_for_every_capability(compiled):
    assert len(compiled) == 3 * 2 * (2 * 2 + 3)  # dtypes and responses, capabilities, kernels
