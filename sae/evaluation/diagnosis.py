"""Which part of an autoencoder holds it back: findings in plain words, from its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["encoder", "dictionary", "k", "width", "data"]

# What a figure must reach before a finding is made of it; tests/evaluation/test_diagnosis.py trains
# autoencoders with one fault each and holds that each is found.
ENCODER_SHARE = 0.25
DICTIONARY_MCC = 0.9
CLOSE = 0.1
UNUSED = 0.1


@dataclass(frozen=True)
class Finding:
    """One reason, and the figures that say so."""

    part: Part
    says: str

    def __str__(self) -> str:
        return f"{self.part}: {self.says}"


def diagnose(figures: Mapping[str, float]) -> list[Finding]:
    """What stands out, the part that costs most first; empty when nothing does.

    Args:
        figures: flat, of `sae.evaluation.evaluate`, and as far as they are known
            `gap.fvu` and `gap.fvu_best` (of an `AmortisationGap`), `largest_k`, `dead_fraction`,
            `c_dec`; and with the name of a control and a point before them those of
            `frozen_decoder`, `gaussian`, and `fewer` and `more`, which have half and twice the L0.
    """
    made = (_encoder, _dictionary, _k, _width, _data)
    return [finding for make in made if (finding := make(figures)) is not None]


def _encoder(f: Mapping[str, float]) -> Finding | None:
    if not f.get("gap.fvu", 0) > 0:
        return None
    share = 1 - f["gap.fvu_best"] / f["gap.fvu"]
    if share < ENCODER_SHARE:
        return None
    return Finding(
        "encoder",
        f"{share:.0%} of the error is the encoder's: with this dictionary and no more latents, "
        f"better codes reach FVU {f['gap.fvu_best']:.4f} in place of {f['gap.fvu']:.4f}. "
        "encode(x, refine=2) has most of it, without training",
    )


def _dictionary(f: Mapping[str, float]) -> Finding | None:
    if "dictionary_mcc_signed" in f and f["dictionary_mcc_signed"] < DICTIONARY_MCC:
        return Finding(
            "dictionary",
            f"its directions are not the true ones: MCC {f['dictionary_mcc_signed']:.3f}, chance "
            f"{f['dictionary_mcc_signed_chance']:.3f}; train longer, or learn it by sparse coding",
        )
    random, ours = f.get("frozen_decoder.gap.fvu_best"), f.get("gap.fvu_best")
    if random is None or ours is None or ours < (1 - CLOSE) * random:
        return None
    return Finding(
        "dictionary",
        f"a decoder that stayed random does as well: FVU {random:.4f} against {ours:.4f} with the "
        "best codes for each; nothing was learnt that counts",
    )


def _k(f: Mapping[str, float]) -> Finding | None:
    if "largest_k" in f and f["l0"] > f["largest_k"]:
        return Finding(
            "k",
            f"{f['l0']:.1f} latents fire on a token, and compressed sensing allows for "
            f"{f['largest_k']:.0f} of this width and number: their values cannot be told apart. "
            "Lower k",
        )
    if "more.c_dec" not in f or not f["more.c_dec"] < (1 - CLOSE) * f["c_dec"]:
        return None
    # c_dec falls until k is right, stays about there, and may fall again where k is far too large:
    # .160 .147 .146 .143 .120 at k 1 2 3 6 12 of a world with 3 active at a time. What already
    # stayed from half the L0 on is the latter.
    if "fewer.c_dec" in f and not f["c_dec"] < (1 - CLOSE) * f["fewer.c_dec"]:
        return None
    return Finding(
        "k",
        f"with {f['more.l0']:.0f} latents on a token in place of {f['l0']:.0f}, latents share "
        f"less direction (c_dec {f['more.c_dec']:.4f} against {f['c_dec']:.4f}): with too few, "
        "one latent stands for several features that come together. Raise k",
    )


def _width(f: Mapping[str, float]) -> Finding | None:
    if f.get("dead_fraction", 0) > UNUSED:
        return Finding(
            "width",
            f"{f['dead_fraction']:.0%} of the latents are dead: fewer would do the same; or lower "
            "the learning rate, or train longer",
        )
    return None


def _data(f: Mapping[str, float]) -> Finding | None:
    if "gaussian.fvu" not in f or f["fvu"] < (1 - CLOSE) * f["gaussian.fvu"]:
        return None
    return Finding(
        "data",
        f"noise with the same covariance is rebuilt as well (FVU {f['gaussian.fvu']:.4f} against "
        f"{f['fvu']:.4f}): at this L0 nothing sparse was found in these activations",
    )
