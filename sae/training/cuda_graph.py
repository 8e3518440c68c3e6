"""Training steps recorded as a CUDA graph and replayed.

If d_sae is 32,768 or less, the kernels of a step take less time than Python takes to launch them.
A replay launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sae.errors import UserError
from sae.training.learner import Learner
from sae.training.row_adam import RowAdam


class GraphedStep:
    """`Learner.step` as a CUDA graph, with the same bits; for a batch size that never changes.

    The first `WARM_UP` steps run as usual, because they tune kernels and create the moments. The
    step is recorded again when the list of dead latents changes its length, or when a schedule
    changes what is computed (k, the exponent of a penalty).

    Args:
        learner: A learner on a CUDA device, with `RowAdam`.

    Raises:
        UserError: The device is not CUDA, or the optimizer is another one.
    """

    WARM_UP = 3

    def __init__(self, learner: Learner) -> None:
        if not isinstance(learner.optimizer, RowAdam):
            raise UserError(
                f"model.cuda_graph=true is for adam and adamw, not {learner.optim.name}; leave it "
                "out"
            )
        device = learner.sae.W_dec.device
        if device.type != "cuda":
            raise UserError(f"model.cuda_graph=true needs a CUDA device, this one is {device}")
        self.learner, self.stream = learner, torch.cuda.Stream(device)
        self.optimizer = learner.optimizer
        self.optimizer.hyper = [
            torch.zeros(7, dtype=torch.float64, device=device) for _ in self.optimizer.param_groups
        ]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.recorded: tuple | None = None
        self.micro: list[dict[str, Tensor]] = []
        self.dead_list = learner.dead.dead_list

    def __call__(self, *micro: dict[str, Tensor]) -> None:
        """Train on one batch, or on micro-batches, like `Learner.step`."""
        learner = self.learner
        if learner.steps < self.WARM_UP or not self.optimizer.state:
            self._on_own_stream(lambda: learner.step(*micro))
            return
        shapes = tuple((n, tuple(t.shape), t.dtype) for acts in micro for n, t in acts.items())
        learner.update_schedules()
        key = (shapes, len(learner.dead.dead_list), *learner.scheduled())
        if key != self.recorded:
            self.micro = [{name: t.clone() for name, t in acts.items()} for acts in micro]
            self.dead_list = learner.dead.dead_list.clone()
        for recorded, acts in zip(self.micro, micro, strict=True):
            for name, tensor in acts.items():
                recorded[name].copy_(tensor)
        self.dead_list.copy_(learner.dead.dead_list)
        learner.dead.dead_list = self.dead_list
        if key != self.recorded:
            self._record()
            self.recorded = key
        assert self.graph is not None
        self.optimizer.replay = self.graph.replay
        try:
            self.optimizer.step()
        finally:
            self.optimizer.replay = None
        learner.host_step(micro)

    def _record(self) -> None:
        """Record the step without running it; no state changes."""
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.learner.device_step(self.micro, self.optimizer.apply)

    def _on_own_stream(self, call: Callable[[], None]) -> None:
        # Autograd's accumulation into leaves remembers the stream of its first use.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            call()
        torch.cuda.current_stream().wait_stream(self.stream)
