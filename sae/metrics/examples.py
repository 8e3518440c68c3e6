"""Top activating examples: the text on which each latent fires most strongly."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sae.errors import UserError
from sae.files import write_text
from sae.metrics.firing import Firing
from sae.metrics.top_activations import TopTable

if TYPE_CHECKING:
    from sae.activations import Split, TextModel
    from sae.autoencoder import SAE


EXAMPLE_TOKENS = 65_536
"""Held-out tokens that a run's examples are chosen from."""


@dataclass(frozen=True)
class Example:
    """A window of text around the position where a latent fires most strongly in its context.

    Attributes:
        tokens: text of each token.
        activations: the latent's value on each token, 0 where it is silent.
        document: number of the document.
        position: position of the strongest token in its document.
    """

    tokens: list[str]
    activations: list[float]
    document: int
    position: int

    def __str__(self) -> str:
        """Return the text on one line, with the strongest token between angle quotes."""
        peak = self.activations.index(max(self.activations))
        marked = [f"«{t}»" if i == peak else t for i, t in enumerate(self.tokens)]
        return " ".join("".join(marked).split())


@dataclass(frozen=True)
class LatentExamples:
    """The examples of one latent, strongest first.

    Attributes:
        latent: its index.
        frequency: share of tokens on which it fires.
        max_activation: its largest value.
        examples: its strongest examples.
    """

    latent: int
    frequency: float
    max_activation: float
    examples: list[Example]


@torch.no_grad()
def top_examples(
    sae: SAE,
    source: TextModel,
    *,
    latents: Iterable[int] | None = None,
    per_latent: int = 6,
    window: int = 10,
    max_tokens: int = 200_000,
    split: Split = "held_out",
) -> list[LatentExamples]:
    """Return the strongest examples of each latent, in one pass over the contexts of `split`.

    Args:
        sae: reads hooks of the source.
        source: a model on text.
        latents: latents to collect examples for; all by default. A latent that never fires gets
            an empty list.
        per_latent: largest number of examples for each.
        window: tokens shown on either side of the peak, cut at the ends of its document and row.
        max_tokens: stop after this many counted tokens, at the end of a batch of contexts.
        split: "train" or "held_out".

    A context gives each latent at most one example, and of examples whose last eight tokens up to
    the peak agree only the strongest is kept, so repeated text cannot fill the list. Memory does
    not grow with the text: 8 * (2 * window + 1) bytes per latent and example.

    Raises:
        UserError: the SAE has no such latent.
    """
    chosen = torch.arange(sae.d_sae) if latents is None else torch.tensor(list(latents)).long()
    for latent in chosen.tolist():
        if not 0 <= latent < sae.d_sae:
            raise UserError(f"latent {latent} does not exist: this SAE has 0 to {sae.d_sae - 1}")
    site = sae.site.bind(source.widths)
    device = sae.W_dec.device
    table = TopTable(chosen.to(device), sae.d_sae, per_latent, window)
    firing = Firing(sae.d_sae, device)
    for contexts in source.contexts(split):
        if firing.tokens >= max_tokens:
            break
        acts = source.model.activations(contexts.tokens, contexts.attention_mask)
        place = contexts.position_mask.flatten().nonzero().squeeze(1).to(source.model.device)
        acts = {hook: acts[hook].flatten(0, 1)[place] for hook in acts}
        finite, inlier = source.rule.activation_masks(acts)
        good = (finite & inlier).nonzero().squeeze(1)
        x, _ = site.pair({hook: acts[hook][good].to(device) for hook in site.hooks})
        codes = sae.encode(x)
        firing.update(codes)
        table.update(codes, place[good].to(device), contexts)
    text = _TokenText(source.model.tokenizer)
    density = firing.density()[chosen.to(device)].tolist()
    return [
        LatentExamples(
            latent=latent,
            frequency=frequency,
            max_activation=examples[0][1] if examples else 0.0,
            examples=[
                Example(text(tokens), [round(a, 4) for a in values], document, position)
                for tokens, _, values, document, position in examples
            ],
        )
        for latent, frequency, examples in zip(chosen.tolist(), density, table.rows(), strict=True)
    ]


class _TokenText:
    """Converts token ids to the pieces of text that they stand for, with spaces.

    A tokenizer's own names for tokens ("##ing", "Ġthe", "▁the") are not text, and a token decoded
    alone loses its leading space. So each is decoded behind another token, which is then cut off.
    """

    def __init__(self, tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        self._lead = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._lead_text = self._decode(self._lead)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def _piece(self, token: int) -> str:
        text = self._decode([*self._lead, token])
        if text.startswith(self._lead_text):
            return text[len(self._lead_text) :]
        return self._decode([token])

    def __call__(self, ids: list[int]) -> list[str]:
        for token in ids:
            if token not in self._known:
                self._known[token] = self._piece(token)
        return [self._known[token] for token in ids]


def write_examples(latents: Iterable[LatentExamples], path: str | Path) -> None:
    """Write JSON lines, one latent each with the fields of `LatentExamples`, atomically."""
    compact = {"ensure_ascii": False, "separators": (",", ":")}
    write_text(path, "".join(json.dumps(asdict(latent), **compact) + "\n" for latent in latents))


def read_examples(path: str | Path) -> list[LatentExamples]:
    """Return what `write_examples` wrote.

    Raises:
        UserError: a line cannot be read.
    """
    result = []
    # Not splitlines, which would split at U+2028 and the like; JSON does not escape them.
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if line:
            try:
                fields = json.loads(line)
                fields["examples"] = [Example(**example) for example in fields["examples"]]
                result.append(LatentExamples(**fields))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path} line {number} does not hold a latent's examples: {error}"
                ) from error
    return result
