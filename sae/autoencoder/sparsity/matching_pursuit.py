"""Matching pursuit: latents fire one after another, each on what the others left (MP-SAE)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sae.autoencoder.sparsity.base import EncoderOutput, EncoderWeights
from sae.autoencoder.sparsity.fixed_k import FixedK
from sae_kernels.codes import Codes
from sae_kernels.decode import decode
from sae_kernels.encode_topk import encode_topk
from sae_kernels.row_grads import row_grads_of


@dataclass(frozen=True, kw_only=True)
class MatchingPursuit(FixedK):
    """k rounds: the latent whose direction has the largest positive product with the residual r
    takes that product as its activation v, and r <- r - v direction (Mallat & Zhang 1993; as an
    autoencoder, Costa et al. 2025).

    If the SAE predicts x, r starts as x - b_dec and the directions are the rows of W_dec: there is
    no encoder to learn. W_enc is a copy of W_dec, made after every step, and b_enc is not read
    (both serve AuxK). Otherwise no row of W_dec lies in the space of x: r starts as x, the
    directions are the columns of W_enc, b_enc is added to every product to take a mean off x, and
    W_dec predicts from the activations. Directions have norm 1 after every step, whatever
    `model.optim.unit_norm` is. The gradient flows through every round, with norms as constants.

    A round costs as much as the whole encoder of TopK. A latent that is picked again fires once,
    with the sum; rounds end when no product is positive, so fewer than k latents may fire.

    Args:
        d_sae: Number of latents.
        k: Number of rounds, and so the most latents that fire on one activation.
    """

    d_sae: int
    k: int

    learns_encoder: ClassVar[bool] = False

    def encode(self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto") -> Codes:
        w = weights
        if w.pre_bias is not None:
            # Not W_dec twice: `fold_scale` makes them differ if hooks have different scales.
            return self._pursue(x - w.pre_bias, w.W_enc, None, w.W_dec, None, backend)
        with torch.no_grad():  # 1 / norm^2 is 1 in training; `fold_scale` may change the norms
            share = 1 / w.W_enc.square().sum(0)
        return self._pursue(x, w.W_enc, w.b_enc, _transposed(w.W_enc), share, backend)

    def encode_training(
        self, x: Tensor, weights: EncoderWeights, *, backend: str = "auto"
    ) -> EncoderOutput:
        w = weights
        if w.pre_bias is None:
            return EncoderOutput(self.encode(x, w, backend=backend))
        encoder = _transposed(w.W_dec)
        return EncoderOutput(self._pursue(x - w.pre_bias, encoder, None, w.W_dec, None, backend))

    def _pursue(
        self,
        residual: Tensor,
        encoder: Tensor,
        bias: Tensor | None,
        directions: Tensor,
        share: Tensor | None,
        backend: str,
    ) -> Codes:
        """Run the rounds.

        Args:
            residual: What is left to explain, [batch, d_in].
            encoder: [d_in, d_sae]; products are residual @ encoder + bias.
            bias: [d_sae], or None for zeros.
            directions: [d_sae, d_in]; a latent takes its product times its row off the residual.
            share: [d_sae], a factor of that product, or None for 1.
        """
        bias = encoder.new_zeros(self.d_sae) if bias is None else bias
        no_bias = residual.new_zeros(residual.shape[1])
        values, indices = [], []
        for number in range(self.k):
            codes = encode_topk(residual, encoder, bias, 1, backend=backend)
            if indices:  # the last latent's product is 0 now, but rounding may leave it positive
                codes.values = torch.where(codes.indices == indices[-1], 0, codes.values)
            values.append(codes.values)
            indices.append(codes.indices)
            if number < self.k - 1:
                if share is not None:
                    codes.values = codes.values * share[codes.indices]
                residual = residual - decode(codes, directions, no_bias, backend=backend)
        return merge_repeats(torch.cat(values, dim=1), torch.cat(indices, dim=1), self.d_sae)

    @torch.no_grad()
    def project(self, weights: EncoderWeights) -> None:
        w = weights
        least = 1e-12  # keeps a row of zeros as it is
        if w.pre_bias is None:
            w.W_enc.div_(w.W_enc.norm(dim=0).clamp_min(least))
        else:
            w.W_dec.div_(w.W_dec.norm(dim=1, keepdim=True).clamp_min(least))
            w.W_enc.copy_(w.W_dec.t())


def _transposed(matrix: Tensor) -> Tensor:
    """Return the transpose; its gradient in parts goes to the matrix's own."""
    transposed = matrix.t()
    # Rows of either are those of latents.
    transposed.row_grads = row_grads_of(matrix)  # type: ignore[attr-defined]
    return transposed


def merge_repeats(values: Tensor, indices: Tensor, d_sae: int) -> Codes:
    """Return codes of [batch, k] slots with each latent's values summed in its first slot."""
    same = indices[:, :, None] == indices[:, None, :]
    repeats = same.tril(-1).any(dim=2)
    sums = (same * values[:, None, :]).sum(dim=2)
    return Codes(torch.where(repeats, 0, sums), indices, d_sae)
