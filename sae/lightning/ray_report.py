"""Report held-out metrics to Ray Tune."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer

from sae.lightning.module import SAEModule


class RayReport(Callback):
    """A callback that reports held-out metrics to Ray Tune after each validation.

    In a run with several members these are the metrics of the best one.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: SAEModule) -> None:
        from ray import tune

        if not trainer.should_stop:  # Lightning validates once more when a run is stopped
            names = ("held_out_fvu", "held_out_l0")
            metrics = {name: trainer.callback_metrics[name].item() for name in names}
            tune.report({**metrics, "step": pl_module.steps})
