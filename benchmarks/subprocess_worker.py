"""Make one measurement in its own process: `python -m benchmarks.subprocess_worker '<JSON>'`.

The result is printed as JSON. Each measurement gets a process because memory has a high-water
mark, and because importing another trainer changes the process for those measured after it.
"""

from __future__ import annotations

import importlib
import json
import sys

import torch
import torch._dynamo  # every optimizer imports it at its first step

from benchmarks.steps import PEERS, Shape, build
from benchmarks.timing import PeakMemory, best_ms, interleaved, limits, products

TINY = Shape(d_in=8, d_sae=64, k=4, batch=16)


def step_time(
    provider: str, rule: str, shape: Shape, device: str, dtype: torch.dtype, seconds: float
) -> dict:
    """Time a training step, with the bare product of the encoder's shape timed in turn with it."""
    step = build(provider, rule, shape, device, dtype)
    x, rows = step.x, torch.randn(shape.d_sae, shape.d_in).to(device, dtype)

    def prepare_and_step() -> None:
        step.prepare()
        step()

    times = interleaved(
        {**products(x, rows), "step": prepare_and_step}, device=device, seconds=seconds
    )
    best = limits(device, dtype)
    return {
        "step": vars(times["step"]),
        "product": times["product"].p50,
        "best_product": best_ms(times),
        "flops_rate": best.flops,
        "bytes_rate": best.bytes,
    }


def step_memory(provider: str, rule: str, shape: Shape, device: str, dtype: torch.dtype) -> dict:
    """Measure the peak memory of a training step above a tiny step, and above the import."""
    if provider in PEERS:
        importlib.import_module(PEERS[provider][1])
    imported = PeakMemory(device)
    tiny = build(provider, rule, TINY, device, dtype)
    for _ in range(3):
        tiny.prepare()
        tiny()
    del tiny
    before = imported.before
    working = PeakMemory(device)
    step = build(provider, rule, shape, device, dtype)
    for _ in range(4):
        step.prepare()
        step()
    peak = working.read()
    return {"working": peak, "above_import": peak + working.before - before}


def measure(job: dict) -> dict:
    """Run a job; its `what` is time or memory."""
    torch.set_num_threads(job["threads"])
    target = (Shape(*job["shape"]), job["device"], getattr(torch, job["dtype"]))
    if job["what"] == "time":
        return step_time(job["provider"], job["rule"], *target, job["seconds"])
    return step_memory(job["provider"], job["rule"], *target)


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(measure(json.loads(sys.argv[1]))) + "\n")
