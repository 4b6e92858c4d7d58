"""Compiles Triton's kernels for a GPU that is not there, and reads from the machine code what they take of one.

    python -m tests.compiling tests.conv.test_fused_compiles [--every]

prints a JSON list, one object for each kernel that `kernels(every)` of that module yields, where `every` says whether all are
wanted or those that tell most. A process of its own: with
TRITON_INTERPRET=1, which the tests set, nothing can be compiled. For that reason the module imports kernels in functions only.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# Bytes of shared memory that a block may have, by compute capability (CUDA C programming guide, technical specifications).
SHARED = {80: 163 * 1024, 90: 227 * 1024}
TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async)\b")


@dataclass
class Compiled:
    """Of one kernel: registers of a thread, bytes of them spilled to memory, bytes of shared memory of a block, and how many
    instructions of tensor cores it has."""

    name: str
    capability: int
    registers: int
    spilled: int
    shared: int
    tensor_cores: int


def compile_for(capability: int, name: str, kernel, arguments: dict, **options) -> Compiled:
    """The kernel compiled for a compute capability, 80 or 90.

    Args:
        kernel: a function under @triton.jit, whose integers are not specialised.
        arguments: by name, "*fp16" for an aligned pointer and "i32" and so on for numbers; a constexpr or None as it is.
        options: num_warps, num_stages.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constexprs = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    types = {n: "constexpr" if n in constexprs or arguments[n] is None else arguments[n] for n in kernel.arg_names}
    constants = {n: arguments[n] for n, kind in types.items() if kind == "constexpr"}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    compiled = triton.compile(
        ASTSource(kernel, types, constants, aligned), target=GPUTarget("cuda", capability, 32), options=options
    )
    registers, stack = _usage(compiled.asm["cubin"])
    spilled = _spilled(compiled.asm["ptx"], capability) if stack else 0
    tensor_cores = len(TENSOR_CORES.findall(compiled.asm["ptx"]))
    return Compiled(name, capability, registers, spilled, compiled.metadata.shared, tensor_cores)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack and local memory: spilled registers, and arrays such as cos has."""
    out = _tool("cuobjdump", cubin, "--dump-resource-usage").stdout
    found = [re.search(rf"\b{name}:(\d+)", out) for name in ("REG", "STACK", "LOCAL")]
    if None in found:
        raise RuntimeError(f"no resource usage in what cuobjdump says: {out!r}")
    registers, stack, local = (int(m[1]) for m in found)
    return registers, stack + local


def _spilled(ptx: str, capability: int) -> int:
    """Bytes that the assembler says it spills."""
    options = ("-v", f"-arch=sm_{capability}{'a' if capability == 90 else ''}", "-o", os.devnull)
    said = _tool("ptxas", ptx.encode(), *options).stderr
    found = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    if not found:
        raise RuntimeError(f"nothing about spills in what ptxas says: {said!r}")
    return max(int(found[1]), int(found[2]))


def _tool(name: str, code: bytes, *options: str) -> subprocess.CompletedProcess:
    """One of Triton's own of NVIDIA's tools, on a file of this."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel")
        file.write_bytes(code)
        tool = Path(triton.__path__[0], "backends", "nvidia", "bin", name)
        return subprocess.run([tool, *options, file], capture_output=True, text=True, check=True)


def compiled_by(module: str) -> list[Compiled]:
    """The kernels of a test module's `kernels(every=False)`, compiled in a process without the interpreter."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "tests.compiling", module], cwd=root, env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [Compiled(**facts) for facts in json.loads(done.stdout)]


def _main(module: str, *options: str) -> None:
    kernels: Iterator[Compiled] = importlib.import_module(module).kernels(every="--every" in options)
    print(json.dumps([asdict(compiled) for compiled in kernels]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
