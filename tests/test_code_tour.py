"""docs/explanation/one-step.md names the files that a step and a run go through."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

import sae
from sae.autoencoder.sparsity import TopK
from sae.training.train_config import TrainConfig

REPO = Path(__file__).resolve().parent.parent
PAGE = (REPO / "docs/explanation/one-step.md").read_text(encoding="utf-8")
STEP, RUN = PAGE.split("## One run")


def listed(text: str, marker: str) -> list[str]:
    return re.findall(rf"^{marker} `([\w/]+\.py)`: ", text, re.MULTILINE)


def files_of_one_step() -> set[str]:
    """Run a step in which some latents are dead, and return the files of sae/ that it enters."""
    config = TrainConfig(TopK(d_sae=64, k=4), dead_after=64, refresh_steps=1)
    learner = config.build_learner({"h": 16}, 32, 100)
    acts = {"h": torch.randn(32, 16, generator=torch.Generator().manual_seed(0))}
    learner.initialise(acts)
    for _ in range(6):
        learner.step(acts)
    assert len(learner.dead.dead_list), "no latent is dead, so AuxK has nothing to do"
    package = Path(sae.__file__).resolve().parent
    entered = set()

    def record(frame, event, arg) -> None:
        if event == "call":
            file = Path(frame.f_code.co_filename)
            if file.is_absolute() and file.resolve().is_relative_to(package):
                entered.add(str(file.resolve().relative_to(package.parent)))

    sys.setprofile(record)
    try:
        learner.step(acts)
    finally:
        sys.setprofile(None)
    return entered


def test_page_lists_the_files_of_one_step():
    main, defaults = listed(STEP, r"\d\."), listed(STEP, "-")
    assert len(main) <= 7
    assert {*main, *defaults} == files_of_one_step()


def test_page_lists_files_of_one_run_that_import_each_other():
    files = listed(RUN, r"\d\.")
    assert len(files) <= 8
    earlier = (REPO / files[0]).read_text(encoding="utf-8")
    for file in files[1:]:
        module = file.removesuffix(".py").replace("/", ".")
        assert module in earlier, f"{file} is not imported by a file before it"
        earlier += (REPO / file).read_text(encoding="utf-8")
