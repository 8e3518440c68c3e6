"""The autoencoder: four parameters, a site and a sparsity rule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae import inference
from sae.autoencoder import io
from sae.autoencoder.cross_layer import joined
from sae.autoencoder.init import unit_rows
from sae.autoencoder.sites import Autoencoder, Site
from sae.autoencoder.sparsity import EncoderOutput, Sparsity
from sae.autoencoder.weights import Weights
from sae.errors import UserError
from sae_kernels.codes import Codes
from sae_kernels.decode import decode


class SAE(nn.Module):
    """x -> codes -> y_hat, with few latents active; y is x itself unless the site says otherwise.

    `W_enc` [d_in, d_sae] is stored latent by latent (its transpose is contiguous), so one latent's
    encoder and decoder weights are each one run of memory for the kernels and the optimiser.
    At the start the rows of W_dec [d_sae, d_out] have norm 1, W_enc is its transpose where x is
    what is predicted and has columns of norm 1 elsewhere, and the biases are zero. A site with a
    skip has `W_skip` [d_in, d_out], a sparsity rule may have parameters of its own.

    Args:
        d_in: width of the activations that one latent reads.
        sparsity: which latents fire; holds `d_sae`.
        site: what is read and what is predicted.
        d_out: width of what is predicted; d_in when left out.
        seed: of the starting directions.
        metadata: what is worth knowing later (model, hook, ...); JSON values only; saved along.

    Attributes:
        unit_norm: whether training holds the rows of W_dec at norm 1.
        stability: [d_sae], of an SAE trained beside others that differ in their seed only: mean
            cosine of each latent's decoder with its partners in the others (signed, matched one to
            one). None of one trained alone. Saved and loaded; no parameter.
    """

    unit_norm = True

    def __init__(
        self,
        d_in: int,
        sparsity: Sparsity,
        *,
        site: Site | None = None,
        d_out: int | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.d_in, self.d_sae = d_in, sparsity.d_sae
        self.d_out = d_in if d_out is None else d_out
        self.sparsity = sparsity
        self.site = site or Autoencoder()
        self.metadata = dict(metadata or {})
        sparsity.check_per_group(self.site.groups)
        reads = unit_rows(self.d_sae, d_in, seed=seed, dtype=dtype)
        tied = self.site.reads == self.site.predicts
        writes = reads if tied else unit_rows(self.d_sae, self.d_out, seed=seed + 1, dtype=dtype)
        self.W_enc = nn.Parameter(reads.clone().t())
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae, dtype=dtype))
        self.W_dec = nn.Parameter(writes)
        self.b_dec = nn.Parameter(torch.zeros(self.d_out, dtype=dtype))
        if self.site.skip:
            self.W_skip = nn.Parameter(torch.zeros(d_in, self.d_out, dtype=dtype))
        for name, own in sparsity.extra_params().items():
            shape = (self.d_sae,) if own.per_latent else ()
            wide = torch.promote_types(dtype, torch.float32) if own.wide else dtype
            start = torch.full(shape, own.start, dtype=wide)
            if own.learns:
                self.register_parameter(name, nn.Parameter(start))
            else:
                self.register_buffer(name, start)
        # Not persistent: not in a state_dict, which is what is learnt.
        self.register_buffer("stability", None, persistent=False)
        self.restrict()

    @property
    def rebuilds(self) -> bool:
        """Whether every latent writes to all that it reads, so that W_dec is a dictionary of x."""
        return self.site.groups == 1 and self.site.reads == self.site.predicts

    def weights(self) -> Weights:
        """What the sparsity rule encodes with."""
        pre_bias = self.b_dec if self.site.reads == self.site.predicts else None
        own = {name: getattr(self, name) for name in self.sparsity.extra_params()}
        return Weights(self.W_enc, self.b_enc, self.W_dec, pre_bias, own)

    def encode(self, x: Tensor, *, refine: int = 0, backend: str = "auto") -> Codes:
        """Codes of `x` [batch, d_in]; the hooks of a site side by side, as `site.pair` gives them.

        refine: steps of inference at this SAE's own dictionary, which start from these codes and
            lower the squared error of every row with no more latents than the encoder gave it
            (`sae.inference.refine`); the result is ragged and has no gradient. GroupMax keeps its
            number of latents, not its groups. What it buys, on one thread of a CPU:

            | refine | known world: FVU, code MCC, us a row | MiniLM, 384 -> 8,192: FVU, us a row |
            |---|---|---|
            | 0 | 0.115, 0.892, 2 | 0.170, 50 |
            | 1 | 0.014, 0.979, 16 | 0.128, 500 |
            | 2 | 0.010, 0.983, 20 | 0.120, 680 |
            | 4 | 0.010, 0.983, 26 | 0.115, 1140 |
            | 16 | 0.010, 0.983, 29 | 0.110, 3020 |

            The world has 256 features in 64 dimensions, 6 active; TopK, trained for 2,000 steps.
            FISTA, 200 iterations, and a refit reach 0.010 and 0.983 in 280 us there.

        Raises UserError when the width is another, and for steps that the site has no use for.
        """
        x = self._checked(x)
        if refine:
            return self._refined(x, refine, backend)
        if self.site.groups == 1:
            return self.sparsity.encode(x, self.weights(), backend=backend)
        rule = self.sparsity.per_group(self.site.groups)
        parts = [EncoderOutput(rule.encode(*some, backend=backend)) for some in self._by_group(x)]
        return joined(parts).codes

    def _refined(self, x: Tensor, steps: int, backend: str) -> Codes:
        if steps < 0:
            raise UserError(f"refine={steps} is no number of steps; give 0 or more")
        if not self.rebuilds:
            raise UserError(
                f"refine={steps} needs what is predicted, and {self.site} predicts something else "
                "than each latent reads; use refine=0"
            )
        codes = self.encode(x, backend=backend)
        better = inference.refine(
            x, self.W_dec, codes, steps, non_negative=not self.sparsity.signed, b=self.b_dec
        ).codes
        better.values = better.values.to(self.b_dec.dtype)
        return better

    def encode_training(
        self, x: Tensor, *, rule: Sparsity | None = None, backend: str = "auto"
    ) -> EncoderOutput:
        """As `encode`, by the rule that holds in training, with what penalties need.

        rule: one with the same parameters, in place of the autoencoder's own.
        """
        x, rule = self._checked(x), rule or self.sparsity
        if self.site.groups == 1:
            return rule.encode_training(x, self.weights(), backend=backend)
        rule = rule.per_group(self.site.groups)
        return joined([rule.encode_training(*some, backend=backend) for some in self._by_group(x)])

    @torch.no_grad()
    def post_step(self, encoded: EncoderOutput) -> None:
        """What the rule changes itself after a step of training."""
        for part, some in zip(encoded.parts or [encoded], self.groups(), strict=True):
            self.sparsity.post_step(part, self.weights().latents(some))
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Bring weights back to what the rule allows, after a step or as averages."""
        for some in self.groups():
            self.sparsity.project(self.weights().latents(some))

    def decoder_norms(self) -> Tensor:
        """[d_sae]: norm of each latent's row of W_dec; several hooks' norms are added."""
        widths = [self.site.widths[hook] for hook in self.site.predicts if self.site.widths]
        return sum(part.norm(dim=1) for part in self.W_dec.split(widths or [self.d_out], dim=1))

    def _checked(self, x: Tensor) -> Tensor:
        width = self.d_in * self.site.groups
        if x.dim() != 2 or x.shape[1] != width:
            where = f" at {', '.join(self.site.reads)}" if self.site.reads else ""
            raise UserError(
                f"activations of shape {tuple(x.shape)} do not fit: this SAE reads "
                f"[batch, {width}]{where}"
            )
        return x.to(self.b_dec.dtype)

    def groups(self) -> list[slice]:
        """The latents of each group; all of them where there is one."""
        size = self.d_sae // self.site.groups
        return [slice(at, at + size) for at in range(0, size * self.site.groups, size)]

    def _by_group(self, x: Tensor) -> list[tuple[Tensor, Weights]]:
        weights = self.weights()
        read = x.split(self.d_in, dim=1)
        return [(x, weights.latents(g)) for x, g in zip(read, self.groups(), strict=True)]

    @torch.no_grad()
    def restrict(self, W_dec: Tensor | None = None) -> None:
        """Take back what groups of latents must not write, an earlier prediction than their own:
        from W_dec, or from another tensor like it."""
        groups = self.site.groups
        if groups == 1:
            return
        W_dec = self.W_dec if W_dec is None else W_dec
        for number, some in enumerate(self.groups()):
            W_dec[some, : number * self.d_out // groups] = 0
        W_dec /= W_dec.norm(dim=1, keepdim=True)

    def decode(self, codes: Codes, x: Tensor | None = None, *, backend: str = "auto") -> Tensor:
        """The prediction [batch, d_out] that `codes` stand for; a site with a skip needs x too."""
        y_hat = decode(codes, self.W_dec, self.b_dec, backend=backend)
        return y_hat + self.skip(x) if self.site.skip else y_hat

    def skip(self, x: Tensor) -> Tensor:
        """What is predicted past the codes: [batch, d_out]."""
        return x.to(self.W_skip.dtype) @ self.W_skip

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x), x)

    @torch.no_grad()
    def folded(self, scale: Mapping[str, float] | float) -> SAE:
        """A copy for raw activations, of this SAE, which was trained on `scale` times them.

        Args:
            scale: one factor, or one for every hook.

        The same latents fire. Codes and thresholds are divided by the scale of what is read, where
        that is one; decoder rows keep their norm where what is predicted has the same.
        """
        copy = SAE(
            self.d_in,
            self.sparsity,
            site=self.site,
            d_out=self.d_out,
            dtype=self.b_dec.dtype,
            metadata={**self.metadata, "activation_scale": scale},
        ).to(self.b_dec.device)
        copy.load_state_dict(self.state_dict())
        copy.stability = self.stability
        reads, predicts = self._factors(scale)
        # Every rule is homogeneous: with x divided by `unit`, and whatever is added to or compared
        # with pre-activations too, codes come out divided by it.
        unit = reads[0] if bool((reads == reads[0]).all()) else reads.new_ones(())
        for some, read in zip(self.groups(), reads.split(self.d_in), strict=True):
            copy.W_enc[:, some] *= (read / unit)[:, None].to(copy.W_enc)
        copy.W_dec *= (unit / predicts).to(copy.W_dec)
        copy.b_enc /= unit.to(copy.b_enc)
        copy.b_dec /= predicts.to(copy.b_dec)
        for name, own in self.sparsity.extra_params().items():
            if own.power:
                tensor = getattr(copy, name)
                tensor /= unit.to(tensor)
        if self.site.skip:
            copy.W_skip *= (reads[:, None] / predicts).to(copy.W_skip)
        return copy

    def _factors(self, scale: Mapping[str, float] | float) -> tuple[Tensor, Tensor]:
        """The scale of every column of x and of y, float64."""
        if isinstance(scale, Mapping):
            reads, predicts = self.site.factors(scale)
            return reads.to(self.b_dec.device), predicts.to(self.b_dec.device)
        one = self.b_dec.new_tensor(scale, dtype=torch.float64)
        return one.expand(self.d_in * self.site.groups), one.expand(self.d_out)

    def save(self, folder: str | Path) -> None:
        """Write `sae.safetensors` and `sae.json` to `folder`, all or nothing."""
        config = {
            "d_in": self.d_in,
            "d_out": self.d_out,
            "sparsity": self.sparsity.to_dict(),
            "site": self.site.to_dict(),
            "dtype": str(self.b_dec.dtype).removeprefix("torch."),
            "metadata": self.metadata,
        }
        more = {} if self.stability is None else {"stability": self.stability.float()}
        io.write(folder, config, self.state_dict() | more)

    @staticmethod
    def load(folder: str | Path, *, device: str | torch.device = "cpu") -> SAE:
        """Read what `save` wrote; raises UserError when anything about it is not as written."""
        config, tensors = io.read(folder)
        try:
            sae = SAE(
                config["d_in"],
                Sparsity.from_dict(config["sparsity"]),
                site=Site.from_dict(config["site"]),
                d_out=config.get("d_out"),
                dtype=getattr(torch, config["dtype"]),
                metadata=config["metadata"],
            )
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{folder} is not a description of an SAE: {error!r}") from error
        stability = tensors.pop("stability", None)
        try:
            if stability is not None and stability.shape != sae.b_enc.shape:
                raise RuntimeError(f"stability is of shape {tuple(stability.shape)}")
            sae.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the weights in {folder} do not fit their description: {reason}"
            ) from error
        sae.stability = stability
        return sae.to(device)

    def extra_repr(self) -> str:
        return f"d_in={self.d_in}, {self.sparsity}, {self.site!r}"
