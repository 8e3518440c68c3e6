"""Steps of several members in parallel on the cores of a CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from statistics import fmean
from typing import TypeVar

import torch

T = TypeVar("T")
# Steps of at least this many multiply-adds (batch x d_in x d_sae) are faster in parallel. On two
# cores, batch 1,024, as a multiple of the steps' times alone (sequential in parentheses):
# 384 -> 4,096 0.87 (1.0); 128 -> 1,024 1.02 to 1.13 (1.03); 64 -> 256, where most of a step is
# Python, 1.06 to 1.22 (1.0).
MIN_MULTIPLY_ADDS = 2**29
# How long a thread runs Python while another waits for it; Python's own 5 ms are a small step.
SWITCH_SECONDS = 1e-4


def faster_in_parallel(multiply_adds: Sequence[int]) -> bool:
    """Return whether steps of these sizes are faster in parallel than one after the other."""
    return len(multiply_adds) > 1 and fmean(multiply_adds) >= MIN_MULTIPLY_ADDS


class ParallelSteps:
    """Runs independent jobs in parallel threads, each with an even share of torch's threads.

    Small steps run one after the other leave cores idle, because each of their operations is split
    over all cores and most are too small for that. Results have the same bits for every number of
    threads (the kernels split rows, never sums), so only the time depends on this.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._split = (0, 0)

    def __call__(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Return the results of the jobs in order, once all are done.

        If jobs failed, the exception of the first of them is raised.
        """
        threads = torch.get_num_threads()
        workers = min(threads, len(jobs))
        if workers < 2:
            return [job() for job in jobs]
        share = threads // workers
        if self._split != (workers, share):
            self.close()
            self._split = (workers, share)
            # OpenMP keeps a number of threads for each thread; MKL has one for all.
            self._pool = ThreadPoolExecutor(workers, "member", torch.set_num_threads, (share,))
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        assert self._pool is not None
        pool, modes = self._pool, (torch.is_inference_mode_enabled(), torch.is_grad_enabled())
        torch.set_num_threads(share)
        try:
            futures = [pool.submit(_call_in_modes, job, *modes) for job in jobs]
            wait(futures)
        finally:
            torch.set_num_threads(threads)
            sys.setswitchinterval(interval)
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads. The next call starts new ones."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool, self._split = None, (0, 0)


def _call_in_modes(job: Callable[[], T], inference: bool, grad: bool) -> T:
    """Run `job` in the caller's autograd modes, which belong to a thread."""
    with torch.inference_mode(inference), torch.set_grad_enabled(grad):
        return job()
