"""The cases to compile ahead of time, one file for each kernels/gpu/*.py; see compile_ahead.py."""

from __future__ import annotations

from dataclasses import dataclass, field

CHIPS = (80, 90, 100)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel with the types of its arguments, and the chips to compile it for.

    types has an entry for each argument that is not in constants, in the notation of
    triton.tools.compile: "*bf16", "i32", "i32:16" for an integer that 16 divides,
    "tensordesc<bf16[128,64]>"; a tuple of these for a tuple. Pointers are aligned to 16 bytes, as
    PyTorch's memory is. constants has every tl.constexpr and may have others: Triton turns an
    argument that is 1 into a constant, which has another type.
    """

    kernel: object  # a JITFunction, or an Autotuner around one
    types: dict[str, str | tuple]
    constants: dict[str, object] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    chips: tuple[int, ...] = CHIPS
    tensor_cores: bool = False  # the code must use them
    spills: bool = False  # the stack may be used; a case that sets it must say why
