"""Compile every Triton kernel ahead of time for sm_80, sm_90 and sm_100; no GPU is needed.

test_compile.py runs it as a script in a process of its own, because kernels that were decorated for
the interpreter cannot be compiled. It prints one line per compile and exits with 1 on a failure: a
compile error, spilled registers, more shared memory than a block may have, no use of tensor cores
where a case asks for them, or a kernel of kernels/gpu/*.py without a case.

To add a kernel, add a `Case` to the list CASES of ahead/NAME.py, where the kernel's module is
kernels/gpu/NAME.py. Kernels are named *_kernel; the device functions that they call are not. To
compile one module: python tests/kernels/compile_ahead.py NAME.

Only cases that differ are listed. Sizes are run-time arguments of most kernels, so one compile
stands for every shape with the same block sizes. bf16 is compiled for all chips, fp32 and fp64
mostly for sm_90 only: between chips their code differs only in the scheduling.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from ahead import Case

MODULES = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "kernels" / "gpu").glob("*.py")
    if path.stem not in ("__init__", "launch", "pre_acts")
)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may have
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


def jit(kernel: object) -> object:
    return kernel.fn if isinstance(kernel, Autotuner) else kernel


def compile_case(case: Case, chip: int):
    kernel = jit(case.kernel)
    constants, attributes = {}, {}

    def signature(kind: str | tuple, where: tuple[int, ...]) -> str | tuple:
        if isinstance(kind, tuple):
            return tuple(signature(part, (*where, i)) for i, part in enumerate(kind))
        name, _, multiple = kind.partition(":")
        if multiple or name.startswith("*"):
            attributes[where] = [["tt.divisibility", 16]]
        return name

    types = {}
    for position, name in enumerate(kernel.arg_names):
        if name in case.constants:
            types[name] = "constexpr"
            constants[(position,)] = case.constants[name]
        else:
            types[name] = signature(case.types[name], (position,))
    unknown = (case.types.keys() | case.constants.keys()) - set(kernel.arg_names)
    assert not unknown, f"no argument of {kernel.__name__}: {', '.join(sorted(unknown))}"
    return triton.compile(
        ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", chip, 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages},
    )


def usage(cubin: bytes) -> tuple[int, int]:
    """Return the registers of a thread and the bytes of its stack, which only a spill uses."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text.stdout + text.stderr).groups()
    return int(registers), int(stack)


def faults(case: Case, chip: int) -> tuple[str, list[str]]:
    """Compile one case and return a summary and a list of faults."""
    start = time.monotonic()
    compiled = compile_case(case, chip)
    registers, stack = usage(compiled.asm["cubin"])
    shared = compiled.metadata.shared
    found = []
    if stack and not case.spills:
        found.append(f"spills: stack {stack}")
    if shared > SHARED_LIMIT[chip]:
        found.append(f"shared memory above {SHARED_LIMIT[chip]}")
    if case.tensor_cores and TENSOR_CORES[chip] not in compiled.asm["ptx"]:
        found.append(f"no {TENSOR_CORES[chip]}")
    seconds = time.monotonic() - start
    return f"regs {registers} stack {stack} shared {shared} {seconds:.1f} s", found


def main(modules: list[str]) -> int:
    failed = 0
    for module in modules:
        source = importlib.import_module(f"sae_kernels.gpu.{module}")
        kernels = {
            jit(value)
            for name, value in vars(source).items()
            if name.endswith("_kernel") and isinstance(jit(value), JITFunction)
        }
        kernels = {kernel for kernel in kernels if kernel.fn.__module__ == source.__name__}
        table = Path(__file__).with_name("ahead") / f"{module}.py"
        cases = importlib.import_module(f"ahead.{module}").CASES if table.exists() else []
        for kernel in kernels - {jit(case.kernel) for case in cases}:
            failed += 1
            sys.stdout.write(f"FAILED {kernel.__name__}: no case in ahead/{module}.py\n")
        for case in cases:
            for chip in case.chips:
                name = f"{module}.{jit(case.kernel).__name__} sm_{chip}"
                try:
                    known, found = faults(case, chip)
                except Exception as error:
                    known, found = "", [f"{type(error).__name__}: {error}"]
                failed += bool(found)
                verdict = f"FAILED {'; '.join(found)}: " if found else ""
                types = " ".join(map(str, case.types.values()))
                sys.stdout.write(f"{verdict}{name} ({types}) {known}\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or MODULES))
