"""Compile every Triton kernel ahead of time for sm_90, in every dtype; no GPU is needed.

Run as a script by test_compile.py, in a process of its own: kernels that were decorated for the
interpreter cannot be compiled. Prints one line a kernel: name, dtype, registers, stack, shared
memory.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae_kernels import _triton_adam, _triton_pairs, _triton_select

WIDE = {"fp64": "fp64", "fp32": "fp32", "bf16": "fp32"}
INT64_POINTERS = {"rows_ptr", "slots_ptr", "starts_ptr", "latents_ptr", "indices_ptr"}
SCALARS = {"width": "i32", "d_sae": "i32", "k": "i32"}
POWERS = {"rate", "root_scale", "beta1", "beta2", "eps"}


def cases(dtype: str):
    acc = tl.float64 if dtype == "fp64" else tl.float32
    block = {"ACC": acc, "BLOCK_P": 8, "BLOCK_D": 512}
    for by_slot in (False, True):
        yield _triton_pairs._sum_rows_kernel, {**block, "BY_SLOT": by_slot}
    yield _triton_pairs._dot_rows_kernel, block
    yield _triton_pairs._sum_weights_kernel, {"ACC": acc, "BLOCK_P": 128}
    double = dtype == "fp64"
    select = {
        "KEY": tl.int64 if double else tl.int32,
        "TOP": 2**63 - 1 if double else 2**31 - 1,
        "DIGITS": 8 if double else 4,
    }
    yield _triton_select._select_kernel, {**select, "BLOCK": 1024}
    # Triton makes an argument that is 1 a constant, which types differently.
    yield _triton_select._select_kernel, {**select, "BLOCK": 1, "k": 1, "d_sae": 1}
    yield _triton_pairs._sum_rows_kernel, {**block, "BY_SLOT": True, "BLOCK_D": 1, "width": 1}
    yield _triton_pairs._dot_rows_kernel, {**block, "BLOCK_D": 1, "width": 1}
    yield _triton_adam._adam_kernel, {"UNIT_NORM": True, "ACC": acc, "BLOCK": 1, "width": 1}
    yield _triton_adam._adam_kernel, {"UNIT_NORM": False, "ACC": acc, "BLOCK": 1024}
    yield _triton_adam._adam_kernel, {"UNIT_NORM": True, "ACC": acc, "BLOCK": 4096}


def argument_type(kernel, name: str, dtype: str) -> str:
    if name in SCALARS:
        return SCALARS[name]
    if name in POWERS:
        return "fp64"
    if name in INT64_POINTERS:
        return "*i64"
    wide = name == "pre_ptr" or (kernel is _triton_pairs._sum_weights_kernel and name == "out_ptr")
    return "*" + (WIDE[dtype] if wide else dtype)


def compile_sm90(kernel, constants: dict, dtype: str):
    signature, constexprs, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            constexprs[(position,)] = constants[name]
        else:
            signature[name] = argument_type(kernel, name, dtype)
            if name.endswith("_ptr"):
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    warps = 8 if constants.get("BLOCK", 0) > 2048 else 4
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})


def stack_bytes(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        return "?"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    return "regs {} stack {}".format(*found.groups()) if found else "?"


if __name__ == "__main__":
    for dtype in WIDE:
        for kernel, constants in cases(dtype):
            compiled = compile_sm90(kernel, constants, dtype)
            assert len(compiled.asm["cubin"]) > 0
            sys.stdout.write(
                f"{kernel.__name__} {dtype} {stack_bytes(compiled.asm['cubin'])} "
                f"shared {compiled.metadata.shared}\n"
            )
