"""Find which part of an SAE limits it, from its metrics, and say so in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["encoder", "dictionary", "k", "width", "data"]

# Thresholds of the findings. tests/cli/test_evaluate_command.py trains SAEs with one fault each and
# checks that it is found.
ENCODER_SHARE = 0.25
"""Share of the error that better codes would save."""
DICTIONARY_MCC = 0.9
CLOSE = 0.1
"""Relative difference below which two values count as the same."""
UNUSED = 0.1
"""Share of dead latents."""


@dataclass(frozen=True)
class Finding:
    """A part that limits the SAE, and the metrics that show it."""

    part: Part
    text: str

    def __str__(self) -> str:
        return f"{self.part}: {self.text}"


def diagnose(metrics: Mapping[str, float]) -> list[Finding]:
    """Return the findings that `metrics` support, from encoder to data.

    Args:
        metrics: metrics of a run by name, from `sae.evaluation.measure`. Of these it uses
            `gap.fvu`, `gap.fvu_best`, `largest_k`, `dead_fraction` and `c_dec` if they are there,
            and the metrics of baselines under `<baseline>.<name>`: `frozen_decoder`, `gaussian`,
            and `fewer` and `more`, which have half and twice the L0.
    """
    checks = (_encoder, _dictionary, _k, _width, _data)
    return [finding for check in checks if (finding := check(metrics)) is not None]


def _encoder(f: Mapping[str, float]) -> Finding | None:
    if not f.get("gap.fvu", 0) > 0:
        return None
    share = 1 - f["gap.fvu_best"] / f["gap.fvu"]
    if share < ENCODER_SHARE:
        return None
    return Finding(
        "encoder",
        f"{share:.0%} of the error is due to the encoder: with this dictionary and no more "
        f"latents, better codes reach FVU {f['gap.fvu_best']:.4f} instead of "
        f"{f['gap.fvu']:.4f}. encode(x, refine=2) gains most of that without training",
    )


def _dictionary(f: Mapping[str, float]) -> Finding | None:
    if "dictionary_mcc_signed" in f and f["dictionary_mcc_signed"] < DICTIONARY_MCC:
        return Finding(
            "dictionary",
            f"its directions are not the true ones: MCC {f['dictionary_mcc_signed']:.3f}, chance "
            f"{f['dictionary_mcc_signed_chance']:.3f}; train longer, or learn it by sparse coding",
        )
    random, trained = f.get("frozen_decoder.gap.fvu_best"), f.get("gap.fvu_best")
    if random is None or trained is None or trained < (1 - CLOSE) * random:
        return None
    return Finding(
        "dictionary",
        f"a frozen random decoder does as well: FVU {random:.4f} against {trained:.4f} with the "
        "best codes for each; training the decoder gained nothing",
    )


def _k(f: Mapping[str, float]) -> Finding | None:
    if "largest_k" in f and f["l0"] > f["largest_k"]:
        return Finding(
            "k",
            f"{f['l0']:.1f} latents fire on a token, and compressed sensing allows at most "
            f"{f['largest_k']:.0f} for this d_in and d_sae: their values cannot be determined. "
            "Lower k",
        )
    if "more.c_dec" not in f or not f["more.c_dec"] < (1 - CLOSE) * f["c_dec"]:
        return None
    # c_dec falls until k is right, stays flat, and may fall again where k is far too large: .160
    # .147 .146 .143 .120 at k 1 2 3 6 12 in a world with 3 active features. If it was already flat
    # from half the L0 on, k is far too large, not too small.
    if "fewer.c_dec" in f and not f["c_dec"] < (1 - CLOSE) * f["fewer.c_dec"]:
        return None
    return Finding(
        "k",
        f"with {f['more.l0']:.0f} instead of {f['l0']:.0f} latents per token, decoder rows overlap "
        f"less (c_dec {f['more.c_dec']:.4f} against {f['c_dec']:.4f}): with too few, one latent "
        "mixes several features that occur together. Raise k",
    )


def _width(f: Mapping[str, float]) -> Finding | None:
    if f.get("dead_fraction", 0) > UNUSED:
        return Finding(
            "width",
            f"{f['dead_fraction']:.0%} of the latents are dead: use fewer, lower the learning "
            "rate, or train longer",
        )
    return None


def _data(f: Mapping[str, float]) -> Finding | None:
    if "gaussian.fvu" not in f or f["fvu"] < (1 - CLOSE) * f["gaussian.fvu"]:
        return None
    return Finding(
        "data",
        f"noise with the same covariance is reconstructed as well (FVU {f['gaussian.fvu']:.4f} "
        f"against {f['fvu']:.4f}): at this L0 the SAE found no sparse structure in the activations",
    )
