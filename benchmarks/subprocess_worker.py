"""One measurement in a process of its own: `python -m benchmarks.subprocess_worker '<JSON>'` prints
JSON.

A process each, because memory has a high-water mark and a peer's import changes the process for
those after it.
"""

from __future__ import annotations

import importlib
import json
import sys

import torch
import torch._dynamo  # every optimiser imports it at its first step

from benchmarks.steps import PEERS, Shape, build
from benchmarks.timing import PeakMemory, best_ms, interleaved, limits, products

TINY = Shape(d_in=8, d_sae=64, k=4, batch=16)


def step_time(
    provider: str, rule: str, shape: Shape, device: str, dtype: torch.dtype, seconds: float
):
    step = build(provider, rule, shape, device, dtype)
    x, rows = step.x, torch.randn(shape.d_sae, shape.d_in).to(device, dtype)

    def prepared() -> None:
        step.prepare()
        step()

    times = interleaved({**products(x, rows), "step": prepared}, device=device, seconds=seconds)
    best = limits(device, dtype)
    return {
        "step": vars(times["step"]),
        "product": times["product"].p50,
        "best_product": best_ms(times),
        "flops_rate": best.flops,
        "bytes_rate": best.bytes,
    }


def step_memory(provider: str, rule: str, shape: Shape, device: str, dtype: torch.dtype):
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
    """Do what a job says: `what` is time or memory."""
    torch.set_num_threads(job["threads"])
    where = (Shape(*job["shape"]), job["device"], getattr(torch, job["dtype"]))
    if job["what"] == "time":
        return step_time(job["provider"], job["rule"], *where, job["seconds"])
    return step_memory(job["provider"], job["rule"], *where)


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(measure(json.loads(sys.argv[1]))) + "\n")
