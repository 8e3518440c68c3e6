"""Jobs side by side: their order, their errors, the modes and threads they run in."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from sae.training.parallel_steps import MIN_MULTIPLY_ADDS, ParallelSteps, faster_in_parallel


@pytest.fixture
def crew():
    crew = ParallelSteps()
    yield crew
    crew.close()


def test_results_are_in_order_and_threads_are_shared_out(crew):
    torch.set_num_threads(4)
    meet = threading.Barrier(3, timeout=20)

    def job(number: int) -> tuple[int, int, str]:
        meet.wait()  # passes only where three run at once
        return number, torch.get_num_threads(), threading.current_thread().name

    found = crew([lambda n=n: job(n) for n in range(3)])
    assert [number for number, _, _ in found] == [0, 1, 2]
    assert {share for _, share, _ in found} == {1}
    assert len({name for _, _, name in found}) == 3
    assert torch.get_num_threads() == 4
    assert set(crew([torch.get_num_threads] * 2)) == {2}


def test_with_one_thread_or_one_job_nothing_is_started(crew):
    here = threading.current_thread
    torch.set_num_threads(1)
    assert crew([here, here]) == [here(), here()]
    torch.set_num_threads(2)
    assert crew([here]) == [here()]


@pytest.mark.parametrize("mode", ["train", "no_grad", "inference"])
def test_jobs_have_the_modes_of_who_calls(crew, mode):
    torch.set_num_threads(2)
    modes = lambda: (torch.is_inference_mode_enabled(), torch.is_grad_enabled())
    with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "train"):
        assert crew([modes, modes]) == [(mode == "inference", mode == "train")] * 2


def test_an_error_is_raised_once_all_are_done(crew):
    torch.set_num_threads(2)
    interval, done = sys.getswitchinterval(), []

    def fails() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        crew([fails, lambda: done.append(1), lambda: done.append(2)])
    assert sorted(done) == [1, 2] and torch.get_num_threads() == 2
    assert sys.getswitchinterval() == interval


def test_several_large_steps_are_faster_in_parallel():
    large = MIN_MULTIPLY_ADDS
    assert faster_in_parallel([large, large])
    assert faster_in_parallel([large // 2, 2 * large])
    assert not faster_in_parallel([large - 1, large])
    assert not faster_in_parallel([4 * large])
