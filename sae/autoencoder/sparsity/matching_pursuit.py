"""Matching pursuit: latents fire one after the other, each on what the others left (MP-SAE)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae.autoencoder.sparsity.base import EncoderOutput, Sparsity, check_k
from sae.autoencoder.weights import Weights
from sae_kernels.codes import Codes
from sae_kernels.decode import decode
from sae_kernels.encode_topk import encode_topk
from sae_kernels.row_grads import row_grads_of


@dataclass(frozen=True, kw_only=True)
class MatchingPursuit(Sparsity):
    """k rounds: the latent whose direction has the largest positive product with the residual r
    takes that product as its activation v, and r <- r - v direction (Mallat & Zhang 1993; as an
    autoencoder, Costa et al. 2025).

    Where x is what is predicted, r starts as x - b_dec, and the directions are the rows of W_dec:
    there is no encoder to learn. W_enc is a copy of W_dec, made anew after every step, and b_enc is
    not read (both serve AuxK). Elsewhere no direction of W_dec lies in the space of x: r starts as
    x, the directions are the columns of W_enc, b_enc is added to every product, which is what takes
    a mean off x, and W_dec predicts from the activations. Directions are held at norm 1 after every
    step, whatever `model.optim.unit_norm` says. The gradient goes through every round, with norms
    as constants.

    A round costs what the whole encoder of TopK does. A latent that is picked again fires once,
    with the sum; where no product is positive the rounds end. So fewer than k may fire.

    Args:
        d_sae: number of latents.
        k: number of rounds, and so how many latents may fire on one activation.
    """

    d_sae: int
    k: int

    def __post_init__(self) -> None:
        check_k(self.k, self.d_sae)

    def encode(self, x: Tensor, weights: Weights, *, backend: str = "auto") -> Codes:
        w = weights
        if w.pre_bias is not None:
            # Not W_dec twice: where hooks have units of their own, folding makes them differ.
            return self._pursue(x - w.pre_bias, w.W_enc, None, w.W_dec, None, backend)
        with torch.no_grad():  # 1 / norm^2 is 1 in training; folding may scale what reads a hook
            share = 1 / w.W_enc.square().sum(0)
        return self._pursue(x, w.W_enc, w.b_enc, _turned(w.W_enc), share, backend)

    def encode_training(
        self, x: Tensor, weights: Weights, *, backend: str = "auto"
    ) -> EncoderOutput:
        w = weights
        if w.pre_bias is None:
            return EncoderOutput(self.encode(x, w, backend=backend))
        reads = _turned(w.W_dec)
        return EncoderOutput(self._pursue(x - w.pre_bias, reads, None, w.W_dec, None, backend))

    def _pursue(
        self,
        r: Tensor,
        reads: Tensor,
        bias: Tensor | None,
        takes: Tensor,
        share: Tensor | None,
        backend: str,
    ) -> Codes:
        """Rounds on r [batch, d_in]: products are r @ reads [d_in, d_sae] + bias [d_sae], and what
        is taken off r is a latent's product times its row of takes [d_sae, d_in] and its share."""
        bias = reads.new_zeros(self.d_sae) if bias is None else bias
        nothing = r.new_zeros(r.shape[1])
        values, indices = [], []
        for number in range(self.k):
            codes = encode_topk(r, reads, bias, 1, backend=backend)
            if indices:  # the last one's product is 0 now: rounding may say it is above
                codes.values = torch.where(codes.indices == indices[-1], 0, codes.values)
            values.append(codes.values)
            indices.append(codes.indices)
            if number < self.k - 1:
                if share is not None:
                    codes.values = codes.values * share[codes.indices]
                r = r - decode(codes, takes, nothing, backend=backend)
        return merged(torch.cat(values, dim=1), torch.cat(indices, dim=1), self.d_sae)

    @torch.no_grad()
    def project(self, weights: Weights) -> None:
        w = weights
        least = 1e-12  # a row of zeros stays one
        if w.pre_bias is None:
            w.W_enc.div_(w.W_enc.norm(dim=0).clamp_min(least))
        else:
            w.W_dec.div_(w.W_dec.norm(dim=1, keepdim=True).clamp_min(least))
            w.W_enc.copy_(w.W_dec.t())


def _turned(matrix: Tensor) -> Tensor:
    """The transpose; its gradient in parts goes where the matrix's own does."""
    turned = matrix.t()
    turned.row_grads = row_grads_of(matrix)  # rows of either are those of latents
    return turned


def merged(values: Tensor, indices: Tensor, d_sae: int) -> Codes:
    """Codes of [batch, k] slots in which a latent's values are added up where it comes first."""
    same = indices[:, :, None] == indices[:, None, :]
    repeats = same.tril(-1).any(dim=2)
    sums = (same * values[:, None, :]).sum(dim=2)
    return Codes(torch.where(repeats, 0, sums), indices, d_sae)
