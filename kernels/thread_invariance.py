"""Make CPU matrix products independent of the number of threads."""

from __future__ import annotations

import os
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def strict_mkl_mode(cpuinfo: str) -> str | None:
    """Return the value of MKL_CBWR that this processor needs, or None if it needs none.

    On Intel processors MKL splits the inner dimension of a product between threads when the result
    is small (seen with [512, 4096] @ [4096, 384]), so that the result depends on how many threads
    there are. Its strict mode does not split it. On AMD processors MKL was never seen to split it.

    The mode names the instructions to use, because AUTO,STRICT reaches only 60 % of the speed of
    AVX512,STRICT, which costs at most 2 % (six shapes on a Xeon with AVX-512, one thread, best of
    two runs: 150-160 GFLOP/s, and 150-161 without it).

    Args:
        cpuinfo: The contents of /proc/cpuinfo.
    """
    if "GenuineIntel" not in cpuinfo:
        return None
    flags = set(cpuinfo.partition("flags")[2].partition("\n")[0].split())
    if "avx512f" in flags:
        return "AVX512,STRICT"
    return "AVX2,STRICT" if "avx2" in flags else None


def set_strict_mkl_mode() -> None:
    """Set MKL_CBWR, unless the user did.

    MKL reads the variable at its first call: a process that multiplied matrices before it imported
    this package keeps the mode it had.

    Matrix times vector is split in every mode. Ops write `vector @ matrix.t()`, which is not.
    """
    if "MKL_CBWR" in os.environ or not _CPUINFO.is_file():
        return
    if mode := strict_mkl_mode(_CPUINFO.read_text()):
        os.environ["MKL_CBWR"] = mode
