"""Report a run's validation to Ray Tune."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class RayReport(Callback):
    """Tells Ray Tune after every validation how the best member does."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from ray import tune

        if not trainer.should_stop:
            names = ("held_out_fvu", "held_out_l0")
            metrics = {name: trainer.callback_metrics[name].item() for name in names}
            tune.report({**metrics, "step": pl_module.steps})
