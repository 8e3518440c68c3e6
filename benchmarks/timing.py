"""Measure time, memory and the peak rates of the machine, on CPU and GPU."""

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
    """Time of a call in milliseconds: median, 20th and 80th percentile."""

    p50: float
    p20: float
    p80: float

    @classmethod
    def of(cls, milliseconds: list[float]) -> Times:
        """Summarize measured times."""
        if len(milliseconds) < 2:
            return cls(*milliseconds * 3)
        tenths = statistics.quantiles(milliseconds, n=10, method="inclusive")
        return cls(statistics.median(milliseconds), tenths[1], tenths[7])


def interleaved(
    calls: dict[str, Callable[[], object]], *, device: str, seconds: float, most: int = 200
) -> dict[str, Times]:
    """Time each call in turn, round after round, so that a busy minute slows all of them alike.

    The first two rounds warm up and are dropped.

    Args:
        calls: Calls to time, by name.
        device: cpu or cuda.
        seconds: Rounds continue until this much time has passed, for at least five rounds.
        most: Largest number of rounds.
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
    # Writing 256 MB first clears the inputs from the second-level cache of 50 to 60 MB.
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
    """Peak memory in MiB since `start`, above the memory in use at `start`.

    On CPU this is the resident memory of the process, of which Linux can reset the high-water
    mark; on a GPU it is the memory handed out by torch's allocator.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        """Start measuring."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / MIB
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")

    def read(self) -> float:
        """Return the peak so far, in MiB."""
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
    """Return calls that compute x @ rows.T: `torch.mm` and, on CPU in fp32, oneDNN's product.

    On CPU `torch.mm` calls MKL, which on an AMD machine takes up to twice as long as oneDNN.

    Args:
        x: Shape [batch, d_in].
        rows: Shape [d_sae, d_in].
    """
    calls: dict[str, Callable[[], object]] = {"product": lambda: torch.mm(x, rows.t())}
    if x.device.type == "cpu" and x.dtype == torch.float32:
        bias = torch.zeros(len(rows))
        linear = torch.ops.mkldnn._linear_pointwise
        calls["onednn"] = lambda: linear(x, rows, bias, "none", [], "")
    return calls


def best_ms(times: dict[str, Times]) -> float:
    """Return the median time of the faster of the `products`."""
    return min(times[name].p50 for name in ("product", "onednn") if name in times)


@dataclass(frozen=True)
class Limits:
    """Rates that this machine just reached, by which `roofline` is computed.

    Attributes:
        flops: FLOPs per second of a matrix product in one dtype.
        bytes: Bytes per second read and written by a copy larger than any cache.
    """

    flops: float
    bytes: float

    def floor_ms(self, flops: float, bytes_: float) -> float:
        """Return the least time in ms that the arithmetic and the memory traffic allow."""
        return 1e3 * max(flops / self.flops, bytes_ / self.bytes)


def limits(device: str, dtype: torch.dtype) -> Limits:
    """Measure the rates of the fastest square matrix product and of a copy in this process."""
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
