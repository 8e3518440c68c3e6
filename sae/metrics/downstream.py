"""Output of the model with the SAE's reconstructions in place of its activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.errors import UserError
from sae.metrics.score import sums_by_cluster

if TYPE_CHECKING:
    from sae.activations import Split, TextModel
    from sae.autoencoder import SAE

Positions = tuple[Tensor, Tensor]
"""Row (context) and column of each position, int64 [n] each."""

# Log-probabilities are computed for this many (position, token id) pairs at a time, 128 MB.
_CHUNK = 1 << 25


@dataclass(frozen=True)
class Downstream:
    """Means over all positions of the evaluated contexts, in float64.

    In every pass but the clean one, activations at *counted* positions (those the SAE is trained
    on) of the hooks that the SAE predicts are replaced. Special tokens, padding and other positions
    that the source leaves out keep their activations. Replacing those too gives larger losses, so
    compare only results with the same replaced positions.

    The fields from `ce_clean` on are None for a model without a next-token head.
    """

    output_cosine: float
    """Cosine between final hidden states at counted positions with the SAE in place and clean."""
    output_cosine_mean_ablation: float
    """Baseline: the same cosine with activations replaced by their mean; often far from 0."""
    downstream_tokens: int
    """Number of counted positions."""
    ce_clean: float | None = None
    """Next-token cross-entropy in nats, over positions whose next token is real text."""
    ce_sae: float | None = None
    """The same with the SAE in place."""
    ce_zero_ablation: float | None = None
    """The same with counted activations replaced by zeros."""
    ce_mean_ablation: float | None = None
    """The same with counted activations replaced by their mean."""
    ce_difference: float | None = None
    """ce_sae - ce_clean."""
    loss_recovered: float | None = None
    """(ce_zero_ablation - ce_sae) / (ce_zero_ablation - ce_clean)."""
    kl_sae: float | None = None
    """KL(clean || SAE in place) of the next-token distribution in nats, over the same positions."""
    ce_tokens: int | None = None
    """Number of positions with a real next token."""
    document_sums: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Sums over each document behind these means, float64 [documents] on the CPU.

    `tokens` and `targets` are the numbers of counted positions and of positions with a next token;
    `cosine_<pass>`, `ce_<pass>` and `kl_sae` are sums, where a pass is `clean`, `sae`,
    `zero_ablation` or `mean_ablation`."""

    def metrics(self) -> dict[str, float | int]:
        """Return the numbers that are not None, by name."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "document_sums"}
        return {name: value for name, value in named.items() if value is not None}


@torch.no_grad()
def downstream(
    sae: SAE,
    source: TextModel,
    *,
    mean: Tensor,
    max_tokens: int = 16_384,
    split: Split = "held_out",
) -> Downstream:
    """Run the model on the contexts of `split`: clean, with the SAE in place, and ablated.

    Codes are computed from the clean activations. All predicted hooks are replaced at once, each by
    its part of the prediction, of the mean, or of zeros.

    Args:
        sae: replaces the activations that it predicts.
        source: a model on text.
        mean: [d_out], the replacement in mean ablation; the mean over the evaluated activations
            (`FVU.mean`).
        max_tokens: stop after this many counted positions, at the end of a batch of contexts.
        split: "train" or "held_out".

    Raises:
        UserError: the split has no counted position.
    """
    model, site = source.model, sae.site.bind(source.widths)
    sums, tokens = _Sums(model.device), 0
    for contexts in source.contexts(split):
        inputs = contexts.tokens, contexts.attention_mask
        # Which positions the rule on activations leaves out is known only after a pass.
        counts = contexts.position_mask.to(model.device)
        acts: dict[str, Tensor] = {}
        look = {hook: partial(_keep, acts, hook) for hook in model.hooks}
        clean = model.outputs(*inputs, replace=look, positions=counts)
        finite, inlier = source.rule.activation_masks(acts)
        good = finite & inlier
        counts = counts.masked_scatter(counts, good)
        context, position = counts.nonzero(as_tuple=True)
        where = context, position
        sums.begin(contexts.document)
        x, y = site.pair({hook: acts[hook][good] for hook in site.hooks})
        runs = {
            "sae": sae(x.to(sae.W_dec.device)).to(x.device),
            "mean_ablation": mean.to(y).expand_as(y),
        }
        if model.has_head:
            runs["zero_ablation"] = torch.zeros_like(y)
        at, targets = source.rule.next_tokens(*inputs)
        predicts = at[0].to(model.device), at[1].to(model.device)
        targets = targets.to(model.device)
        for name, y_hat in runs.items():
            put = {hook: partial(_put, part) for hook, part in site.split(y_hat).items()}
            out = model.outputs(*inputs, replace=put, positions=counts)
            sums.add_cosine(name, where, clean.hidden[where], out.hidden[where])
            if out.logits is not None:
                reference = clean.logits if name == "sae" else None
                sums.add_loss(name, out.logits, predicts, targets, reference)
        if clean.logits is not None:
            sums.add_loss("clean", clean.logits, predicts, targets)
            sums.add("targets", predicts, torch.ones_like(targets))
        sums.add("tokens", where, torch.ones_like(where[0]))
        tokens += len(where[0])
        if tokens >= max_tokens:
            break
    if tokens == 0:
        raise UserError(f"split={split} has no counted position; give more held-out text")
    return sums.result()


def _keep(acts: dict[str, Tensor], hook: str, x: Tensor) -> Tensor:
    """Store the activations of a hook, and return them unchanged."""
    return acts.setdefault(hook, x)


def _put(new: Tensor, x: Tensor) -> Tensor:
    return new


class _Sums:
    """Float64 sums over the positions of every document by name, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._documents: list[Tensor] = []
        self._batches: list[dict[str, Tensor]] = []

    def begin(self, document: Tensor) -> None:
        """Start a batch of contexts, to which later values belong.

        Args:
            document: the document of each position, int64 [contexts, context_size].
        """
        documents, index = document.unique(return_inverse=True)
        self._documents.append(documents)
        self._index = index.to(self._device)
        self._batches.append({})

    def add(self, name: str, positions: Positions, values: Tensor) -> None:
        """Add values [n] of some positions to the sums of their documents."""
        sums = self._batches[-1]
        if name not in sums:
            size = len(self._documents[-1])
            sums[name] = torch.zeros(size, dtype=torch.float64, device=self._device)
        sums[name].index_add_(0, self._index[positions], values.double())

    def add_cosine(self, name: str, positions: Positions, clean: Tensor, other: Tensor) -> None:
        cosine = torch.cosine_similarity(clean.double(), other.double(), dim=-1)
        self.add(f"cosine_{name}", positions, cosine)

    def add_loss(
        self,
        name: str,
        logits: Tensor,
        predicts: Positions,
        targets: Tensor,
        clean: Tensor | None = None,
    ) -> None:
        """Add cross-entropy at positions `predicts`, and the KL from `clean` logits if given."""
        size = max(1, _CHUNK // logits.shape[-1])
        for row, column, target in zip(
            predicts[0].split(size), predicts[1].split(size), targets.split(size), strict=True
        ):
            at = row, column
            log_q = logits[at].float().log_softmax(-1)
            self.add(f"ce_{name}", at, -log_q.gather(1, target[:, None])[:, 0])
            if clean is not None:
                log_p = clean[at].float().log_softmax(-1)
                kl = (log_p.exp() * (log_p - log_q)).sum(1, dtype=torch.float64)
                self.add(f"kl_{name}", at, kl)

    def result(self) -> Downstream:
        columns = {
            name: torch.cat([batch[name] for batch in self._batches]).cpu()
            for name in self._batches[0]
        }
        document_sums = sums_by_cluster(columns, torch.cat(self._documents))
        sums = {name: total.sum().item() for name, total in document_sums.items()}
        tokens, targets = round(sums["tokens"]), round(sums.get("targets", 0))
        cosine = {
            "output_cosine": sums["cosine_sae"] / tokens,
            "output_cosine_mean_ablation": sums["cosine_mean_ablation"] / tokens,
        }
        loss: dict[str, float] = {}
        if targets:
            names = ("ce_clean", "ce_sae", "ce_zero_ablation", "ce_mean_ablation", "kl_sae")
            loss = {name: sums[name] / targets for name in names}
            loss["ce_difference"] = loss["ce_sae"] - loss["ce_clean"]
            harm = loss["ce_zero_ablation"] - loss["ce_clean"]
            if harm:
                loss["loss_recovered"] = (loss["ce_zero_ablation"] - loss["ce_sae"]) / harm
        return Downstream(
            **cosine,
            **loss,
            downstream_tokens=tokens,
            ce_tokens=targets or None,
            document_sums=document_sums,
        )
