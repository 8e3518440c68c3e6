"""Members' work side by side on the cores of a CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from statistics import fmean
from typing import TypeVar

import torch

T = TypeVar("T")
# Steps of at least so many multiply-adds (batch x d_in x d_sae) are faster side by side. On two
# cores, batch 1,024, in multiples of lone steps (and one after the other): 384 -> 4,096 0.87 (1.0);
# 128 -> 1,024 1.02 to 1.13 (1.03); 64 -> 256, where most of a step is Python, 1.06 to 1.22 (1.0).
WORTH = 2**29
# How long a thread runs Python while another waits for it; Python's own 5 ms are a small step.
SWITCH_SECONDS = 1e-4


def worth(steps: Sequence[int]) -> bool:
    """Whether a crew takes steps of so many multiply-adds sooner than one after the other does."""
    return len(steps) > 1 and fmean(steps) >= WORTH


class ParallelSteps:
    """Calls independent jobs at once, each in a thread that has an even share of torch's threads.

    One small step after the other leaves cores idle: each of its operations is split over all of
    them, and most are too small for that. What one thread computes and what several compute is the
    same to the last bit (the kernels split rows, never sums), so nothing but time depends on this.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._split = (0, 0)

    def __call__(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """The results, in order. The first exception among them is raised when all are done."""
        threads = torch.get_num_threads()
        workers = min(threads, len(jobs))
        if workers < 2:
            return [job() for job in jobs]
        share = threads // workers
        if self._split != (workers, share):
            self.close()
            self._split = (workers, share)
            # Each thread has its own number for OpenMP; that for MKL is one for all.
            self._pool = ThreadPoolExecutor(workers, "member", torch.set_num_threads, (share,))
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        torch.set_num_threads(share)
        try:
            futures = [self._pool.submit(_in_modes, job, *modes) for job in jobs]
            wait(futures)
        finally:
            torch.set_num_threads(threads)
            sys.setswitchinterval(interval)
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads. They are begun anew by the next call."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool, self._split = None, (0, 0)


def _in_modes(job: Callable[[], T], inference: bool, grad: bool) -> T:
    """Autograd's modes are a thread's own; a job has those of who calls the crew."""
    with torch.inference_mode(inference), torch.set_grad_enabled(grad):
        return job()
