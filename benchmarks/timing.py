"""Time, memory and the machine's own limits, on CPU and GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 2**20


@dataclass(frozen=True)
class Times:
    """Milliseconds: median and the quantiles around it."""

    p50: float
    p20: float
    p80: float

    @classmethod
    def of(cls, milliseconds: list[float]) -> Times:
        if len(milliseconds) < 2:
            return cls(*milliseconds * 3)
        tenths = statistics.quantiles(milliseconds, n=10, method="inclusive")
        return cls(statistics.median(milliseconds), tenths[1], tenths[7])


def interleaved(
    calls: dict[str, Callable[[], object]], *, device: str, seconds: float, most: int = 200
) -> dict[str, Times]:
    """Each call in turn, round after round, so that a noisy minute hits all of them alike.

    The first two rounds warm up and are dropped. Rounds go on until `seconds` have passed, at least
    five and at most `most`.
    """
    clock = _gpu_milliseconds if device == "cuda" else _cpu_milliseconds
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in [*calls.values()] * 2:
        clock(call)
    end = time.perf_counter() + seconds
    while (rounds := len(next(iter(samples.values())))) < most:
        if rounds >= 5 and time.perf_counter() > end:
            break
        for name, call in calls.items():
            samples[name].append(clock(call))
    return {name: Times.of(values) for name, values in samples.items()}


def _cpu_milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _gpu_milliseconds(call: Callable[[], object]) -> float:
    # 256 MB are written first: the 50 to 60 MB of second-level cache then hold none of the inputs.
    _flush()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


_scratch: list[torch.Tensor] = []


def _flush() -> None:
    if not _scratch:
        _scratch.append(torch.empty(64 * MIB, dtype=torch.int32, device="cuda"))
    _scratch[0].zero_()


class PeakMemory:
    """The most memory in use since `start`, less what was in use then, in MiB.

    On CPU the resident memory of this process, whose high-water mark the kernel resets; on a GPU
    what torch's allocator handed out.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / MIB
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")

    def read(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() / MIB - self.before
        return _status("VmHWM") - self.before


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}: memory is measured on Linux only")


def products(x: torch.Tensor, rows: torch.Tensor) -> dict[str, Callable[[], object]]:
    """x [batch, d_in] times rows [d_sae, d_in] transposed: `torch.mm`, and the other library's.

    On CPU torch.mm is MKL's, which on an AMD machine takes up to twice as long as oneDNN.
    """
    calls: dict[str, Callable[[], object]] = {"product": lambda: torch.mm(x, rows.t())}
    if x.device.type == "cpu" and x.dtype == torch.float32:
        bias = torch.zeros(len(rows))
        linear = torch.ops.mkldnn._linear_pointwise
        calls["onednn"] = lambda: linear(x, rows, bias, "none", [], "")
    return calls


def best_ms(times: dict[str, Times]) -> float:
    """Of the faster of `products`."""
    return min(times[name].p50 for name in ("product", "onednn") if name in times)


@dataclass(frozen=True)
class Limits:
    """What this machine reached just now: the ruler for `roofline`.

    Args:
        flops: of a matrix product of one dtype, per second.
        bytes: read and written by a copy larger than any cache, per second.
    """

    flops: float
    bytes: float

    def floor_ms(self, flops: float, bytes_: float) -> float:
        """No faster than either the arithmetic or the traffic allows."""
        return 1e3 * max(flops / self.flops, bytes_ / self.bytes)


def limits(device: str, dtype: torch.dtype) -> Limits:
    """Measured in this process: a square product as fast as this build has it, and a copy."""
    size = 8192 if device == "cuda" else 1536
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    elements = 2**28 if device == "cuda" else 2**25
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    calls = {**products(left, right), "copy": lambda: target.copy_(source)}
    times = interleaved(calls, device=device, seconds=1.0)
    product = best_ms(times)
    return Limits(2 * size**3 / product * 1e3, 2 * 4 * elements / times["copy"].p20 * 1e3)
