"""Parallel jobs: order of results, errors, autograd modes and threads."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from sae.training.parallel_steps import MIN_MULTIPLY_ADDS, ParallelSteps, faster_in_parallel


@pytest.fixture
def parallel_steps():
    parallel_steps = ParallelSteps()
    yield parallel_steps
    parallel_steps.close()


def test_results_are_in_order_and_threads_are_divided(parallel_steps):
    torch.set_num_threads(4)
    meet = threading.Barrier(3, timeout=20)

    def job(number: int) -> tuple[int, int, str]:
        meet.wait()  # passes only if three jobs run at once
        return number, torch.get_num_threads(), threading.current_thread().name

    results = parallel_steps([lambda n=n: job(n) for n in range(3)])
    assert [number for number, _, _ in results] == [0, 1, 2]
    assert {share for _, share, _ in results} == {1}
    assert len({name for _, _, name in results}) == 3
    assert torch.get_num_threads() == 4
    assert set(parallel_steps([torch.get_num_threads] * 2)) == {2}


def test_one_thread_or_one_job_starts_no_thread(parallel_steps):
    current = threading.current_thread
    torch.set_num_threads(1)
    assert parallel_steps([current, current]) == [current(), current()]
    torch.set_num_threads(2)
    assert parallel_steps([current]) == [current()]


@pytest.mark.parametrize("mode", ["train", "no_grad", "inference"])
def test_jobs_have_the_autograd_modes_of_the_caller(parallel_steps, mode):
    torch.set_num_threads(2)
    modes = lambda: (torch.is_inference_mode_enabled(), torch.is_grad_enabled())
    with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "train"):
        assert parallel_steps([modes, modes]) == [(mode == "inference", mode == "train")] * 2


def test_error_of_a_job_is_raised_after_all_jobs(parallel_steps):
    torch.set_num_threads(2)
    interval, done = sys.getswitchinterval(), []

    def fails() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        parallel_steps([fails, lambda: done.append(1), lambda: done.append(2)])
    assert sorted(done) == [1, 2] and torch.get_num_threads() == 2
    assert sys.getswitchinterval() == interval


def test_only_several_large_steps_run_in_parallel():
    large = MIN_MULTIPLY_ADDS
    assert faster_in_parallel([large, large])
    assert faster_in_parallel([large // 2, 2 * large])
    assert not faster_in_parallel([large - 1, large])
    assert not faster_in_parallel([4 * large])
