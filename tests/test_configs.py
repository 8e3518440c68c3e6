"""Every shipped config parses and builds, and every setting of a class has a type."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse._parameter_resolvers import get_signature_parameters

from sae.activations import ActivationData, Source, Text
from sae.autoencoder.registry import Registered
from sae.cli.config import TrainerConfig, leaves, parse_config
from sae.cli.main import main
from sae.training.train_config import TrainConfig

REPO = Path(__file__).resolve().parent.parent
# The files in sweeps/ are for Weights & Biases: tests/cli/test_wandb_sweep.py
CONFIGS = sorted(f for f in (REPO / "configs").rglob("*.yaml") if f.parent.name != "sweeps")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: str(f.relative_to(REPO / "configs")))
def test_config_parses_and_builds(file):
    settings = parse_config(["--config", str(file)])
    assert settings.run.name not in ("", None)
    assert settings.run.steps > 0
    (recipe,) = settings.run.members.values()
    assert recipe.sparsity.d_sae >= getattr(recipe.sparsity, "k", 1)
    assert recipe.seed == settings.run.data.seed == 0


def test_configs_have_different_run_names():
    names = [parse_config(["--config", str(f)]).run.name for f in CONFIGS]
    assert len(set(names)) == len(names)


def test_print_config_prints_one_page_that_is_a_config(capsys, tmp_path):
    """The settings of the default run fit on one page, and parse to the same settings."""
    with pytest.raises(SystemExit) as done:
        main(["fit", "--print_config"])
    printed = capsys.readouterr().out
    assert done.value.code == 0 and 40 < len(printed.splitlines()) < 90
    (tmp_path / "printed.yaml").write_text(printed)
    one, other = (
        parse_config(["--config", str(file)]).options
        for file in (tmp_path / "printed.yaml", REPO / "configs/default.yaml")
    )
    assert one.model == other.model and one.data == other.data and one.trainer == other.trainer


CLASSES = [c for family in Registered.__subclasses__() for c in family.registry.values()]
CLASSES += [*leaves(Source), *leaves(Text), TrainConfig, ActivationData, TrainerConfig]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_setting_has_a_type_that_the_parser_resolves(cls):
    """jsonargparse keeps an annotation it cannot resolve as text, and then accepts any value."""
    for parameter in get_signature_parameters(cls):
        assert not isinstance(parameter.annotation, str), (
            f"{parameter.name}: {parameter.annotation}"
        )
