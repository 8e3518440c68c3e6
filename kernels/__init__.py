"""Sparse-autoencoder ops: tensors in, tensors out. Import name: `sae_kernels`.

Each op is a function in the module of its row: `from sae_kernels.decode import decode`. Its equation,
checks and autograd are in that module; its dense twin is in `reference.py`.

| module | public functions | result | cpu/ | gpu/ |
|---|---|---|---|---|
| encode_topk | encode_topk | relu of the k largest of each row | encode_topk | encode_topk |
| encode_batch_topk | encode_batch_topk | relu of the k * batch largest | encode_batch_topk | encode_batch_topk |
| encode_threshold | encode_threshold, encode_jumprelu | pre where it exceeds theta | encode_threshold | encode_threshold |
| encode_gated | encode_gated | 1[gate > 0] * relu(magnitude) | encode_threshold | encode_threshold |
| encode_dense_rule | encode_dense_rule, largest | any rule that takes k per row | pre_acts | pre_acts |
| encode_unrolled | encode_unrolled | z = relu(z + step (pre - z W W_enc) - theta) | - | - |
| decode | decode | x_hat = values W_dec + b_dec | spmm | spmm |
| decode_error | decode_error | x - x_hat and its sum of squares | decode_error | decode_error |
| decode_prefixes | decode_prefixes, matryoshka_levels, rank_levels | squared error of nested codes | decode_prefixes | decode_prefixes |
| aux_error | aux_error | squared error of listed latents | - | - |
| pre_act_loss | pre_act_loss | sum of relu(theta - pre) of listed latents | - | - |
| adam | adam_rows_, square_norm | one Adam step in place | adam | adam |
"""  # noqa: E501

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def _import_hugging_face_kernels() -> None:
    """Import the next package called `kernels` on the path in place of this one.

    The checkout is on sys.path under `python train.py`, and transformers imports Hugging Face's
    `kernels`. If that is not installed, this module looks like a namespace package (no `__file__`),
    which transformers takes for "not installed".
    """
    checkout = Path(__file__).resolve().parent.parent
    path = [entry for entry in sys.path if Path(entry).resolve() != checkout]
    spec = PathFinder.find_spec("kernels", path)
    if spec is None or spec.loader is None:
        del globals()["__file__"]
        return
    sys.modules["kernels"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "kernels":
    _import_hugging_face_kernels()
else:
    from sae_kernels.thread_invariance import set_strict_mkl_mode

    set_strict_mkl_mode()
