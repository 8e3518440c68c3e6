"""Training the baselines of a run."""

from __future__ import annotations

import pytest

from sae import SAE, progress
from sae.activations import ActivationData
from sae.autoencoder.sparsity import TopK
from sae.evaluation import with_baselines
from sae.evaluation.baseline_sources import GAUSSIAN, MatchedGaussian
from sae.evaluation.baselines import list_baselines, train_baselines
from sae.metrics.decoder_directions import dictionary_mcc_signed
from sae.training.train_config import TrainConfig
from sae.worlds import SparseSuperposition


@pytest.fixture
def data() -> ActivationData:
    world = SparseSuperposition(d_in=16, n_features=32, mean_active=2)
    return ActivationData(world, batch_size=64, block_batches=4, held_out_tokens=256)


def test_training_baselines_reports_progress_by_source(data, monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.01)
    monkeypatch.delenv("SAE_QUIET")
    baselines = list_baselines(TrainConfig(TopK(d_sae=32, k=4)), data.source, rows=256)
    train_baselines(baselines, data, 20, "cpu")
    assert [baseline.name for baseline in baselines if baseline.sae is None] == []
    lines = capsys.readouterr().err.splitlines()
    for group in ("decoder frozen, half the L0, twice the L0", "Gaussian noise"):
        group_lines = [line for line in lines if line.startswith(f"training baselines ({group})")]
        assert group_lines[0].endswith(" ...") and "done in" in group_lines[-1]
        assert any("% after" in line for line in group_lines), group_lines


def test_quiet_training_of_baselines_prints_nothing(data, monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    baselines = list_baselines(TrainConfig(TopK(d_sae=32, k=4)), data.source, rows=256)
    train_baselines(baselines[:1], data, 2, "cpu")  # SAE_QUIET is set in all tests
    assert capsys.readouterr() == ("", "")


def test_sae_trained_on_matched_gaussian_is_compared_with_the_true_features(data, monkeypatch):
    config, trained = TrainConfig(TopK(d_sae=32, k=4)), []

    def only_gaussian(*args):
        trained[:] = [b for b in list_baselines(*args) if b.name == GAUSSIAN]
        return trained

    monkeypatch.setattr(with_baselines, "list_baselines", only_gaussian)
    sae = SAE(16, TopK(d_sae=32, k=4))
    evaluation = with_baselines.evaluate_with_baselines(sae, config, data, 20, max_tokens=256)
    metrics, (baseline,) = evaluation.baselines[GAUSSIAN], trained
    assert isinstance(baseline.source, MatchedGaussian)
    expected = dictionary_mcc_signed(baseline.sae.W_dec, data.source.truth)
    assert metrics["dictionary_mcc_signed"] == expected < 0.8
    assert "code_mcc" not in metrics and "mis" not in metrics  # noise has no true codes
