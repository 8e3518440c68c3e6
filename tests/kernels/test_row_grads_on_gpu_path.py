"""Tests of cut lists, gradients in any number of parts, and the random bits of the update.

They run on a GPU or in the interpreter, against plain PyTorch in float64.
"""

from __future__ import annotations

import pytest
import torch

from kernel_cases import (
    CUDA,
    TRITON,
    assert_as_accurate,
    each_dtype,
    given,
    mark_slow_in_interpreter,
    normal,
    ragged,
    settings,
    st,
)
from sae_kernels import reference
from sae_kernels.codes import Codes
from sae_kernels.pairs import Pairs
from sae_kernels.row_grads import PairPart, RowGrads, RowPart

pytest.importorskip("triton")
if not TRITON:
    pytest.skip("test_interpreter.py runs these in its own process", allow_module_level=True)

import triton
import triton.language as tl

from sae_kernels.gpu import adam as gpu_adam
from sae_kernels.gpu import row_grads as gpu_row_grads
from sae_kernels.gpu import spmm as gpu_spmm

DEVICE = "cuda" if CUDA else "cpu"
HYPER = {"lr": 3e-2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8}


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_row_grads, "PIECE", 4)


def pairs_of(latents: list[int], d_sae: int, lengths: list[int], padding: int = 0) -> Pairs:
    """Return ragged pairs: `latents` in rows of `lengths`, followed by slots of padding."""
    indices = torch.tensor(latents + [d_sae - 1] * padding, dtype=torch.int64, device=DEVICE)
    return Pairs(indices, torch.tensor([0, *lengths], device=DEVICE).cumsum(0), d_sae)


def sums(pairs: Pairs, weights: torch.Tensor, left: torch.Tensor, table: torch.Tensor) -> list:
    """Return sum_tokens, sum_weights and dot_rows, the last without padding."""
    real = int(pairs.row_starts[-1])
    return [
        gpu_spmm.sum_tokens(pairs, weights, left),
        gpu_spmm.sum_weights(pairs, weights),
        gpu_spmm.dot_rows(pairs, left, table)[:real],
    ]


def plain_sums(pairs: Pairs, weights: torch.Tensor, left: torch.Tensor, table: torch.Tensor):
    real = int(pairs.row_starts[-1])
    latents, tokens = pairs.indices.flatten()[:real], pairs.token_of_slot[:real]
    weights, width = weights[:real], left.shape[1]
    wide = torch.promote_types(weights.dtype, torch.float32)
    rows = left.new_zeros(pairs.d_sae, width)
    rows.index_add_(0, latents, weights[:, None] * left[tokens])
    totals = torch.zeros(pairs.d_sae, dtype=wide, device=DEVICE)
    totals.index_add_(0, latents, weights.to(wide))
    return [rows, totals, (left[tokens] * table[latents]).sum(1)]


def check_sums(pairs: Pairs, width: int, dtype: torch.dtype) -> None:
    inputs = [
        normal(*shape, seed=seed).to(DEVICE)
        for seed, shape in enumerate(
            [(pairs.indices.numel(),), (pairs.batch, width), (pairs.d_sae, width)]
        )
    ]
    inputs[0][int(pairs.row_starts[-1]) :] = torch.nan  # padding must not reach any output
    narrow = [t.to(dtype) for t in inputs]
    results = zip(
        ["sum_tokens", "sum_weights", "dot_rows"],
        sums(pairs, *narrow),
        plain_sums(pairs, *narrow),
        plain_sums(pairs, *inputs),
        strict=True,
    )
    for name, *three in results:
        assert_as_accurate(*three, name)


@each_dtype
@pytest.mark.parametrize(
    ("latents", "lengths", "padding"),
    [
        ([0] * 4 + [2] * 5, [9], 0),  # one list just short enough, one just too long
        ([2] * 23, [1] * 23, 0),  # nothing but one long list, of the last latent
        ([0, 1, 1, 0] * 8, [5, 0, 27], 3),  # two long lists, then padding after them
        ([1] * 8 + [0] * 8, [16], 8),  # whole pieces only
        ([0, 1, 2], [3], 40),  # far more padding than pairs
    ],
    ids=["edge", "last", "two", "even", "padding"],
)
def test_sums_over_lists_that_are_cut(latents, lengths, padding, dtype):
    check_sums(pairs_of(latents, 3, lengths, padding), 5, dtype)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 14), min_size=1, max_size=6),
    padding=st.integers(0, 9),
    width=st.integers(1, 9),
    piece=st.sampled_from([2, 4, 6]),
)
def test_sums_over_lists_of_any_length(counts, padding, width, piece):
    latents = [j for j, count in enumerate(counts) for _ in range(count)]
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(len(latents)))
    shuffled = torch.tensor(latents, dtype=torch.int64)[order].tolist()
    lengths = [len(latents) // 2, len(latents) - len(latents) // 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_row_grads, "PIECE", piece)
        check_sums(pairs_of(shuffled, len(counts), lengths, padding), width, torch.float32)


def test_padding_gets_no_gradient():
    pairs = pairs_of([0, 1, 1], 3, [2, 1], padding=5)
    ones = torch.ones(3, 2, device=DEVICE)
    assert gpu_spmm.dot_rows(pairs, ones[:2], ones).tolist() == [2.0] * 3 + [0.0] * 5


def parts(
    n_pairs: int, n_rows: int, d_sae: int, width: int, dtype: torch.dtype, seed: int = 0
) -> RowGrads:
    """Return pair parts, with one latent on every token and one on none, and row parts."""
    grads = RowGrads()
    for n in range(n_pairs):
        indices = torch.randint(d_sae - 1, (9, 3), generator=torch.Generator().manual_seed(n))
        indices[:, 0] = n
        weights = normal(27, seed=seed + n, dtype=dtype).to(DEVICE)
        table = normal(9, width, seed=seed + 50 + n, dtype=dtype).to(DEVICE)
        grads.pair_parts.append(PairPart(Pairs(indices.to(DEVICE), None, d_sae), weights, table))
    for n in range(n_rows):
        latents = torch.arange(n, d_sae, 3, device=DEVICE)
        rows = normal(len(latents), width, seed=seed + 90 + n, dtype=dtype).to(DEVICE)
        grads.row_parts.append(RowPart(latents, rows))
    return grads


def in_float64(grads: RowGrads) -> RowGrads:
    return RowGrads(
        [PairPart(p, w.double(), t.double()) for p, w, t in grads.pair_parts],
        [RowPart(latents, rows.double()) for latents, rows in grads.row_parts],
    )


@mark_slow_in_interpreter
@pytest.mark.parametrize("n_pairs", [0, 1, 3])
@pytest.mark.parametrize("n_rows", [0, 2])
@pytest.mark.parametrize("dense", [False, True], ids=["parts", "and-dense"])
def test_square_norm_of_any_number_of_parts(n_pairs, n_rows, dense, monkeypatch):
    monkeypatch.setattr(gpu_row_grads, "BLOCK_WIDTH", 4)  # several blocks, the last one ragged
    rows = torch.zeros(7, 9, device=DEVICE)
    grads = parts(n_pairs, n_rows, 7, 9, torch.float32)
    whole = normal(7, 9, seed=5, dtype=torch.float32).to(DEVICE) if dense else None
    squares = [gpu_row_grads.square_norm(rows, whole, grads) for _ in range(2)]
    if not (n_pairs or n_rows or dense):
        assert squares[0].item() == 0
        return
    wide = None if whole is None else whole.double()
    truth = reference.dense_gradient(rows.shape, wide, in_float64(grads)).square().sum()
    torch.testing.assert_close(squares[0], truth, rtol=1e-6, atol=0)
    assert squares[0].ndim == 0 and torch.equal(*squares)


def state(
    d_sae: int, width: int, dtype: torch.dtype, moments: torch.dtype | None = None
) -> list[torch.Tensor]:
    """Return a param with rows of length 1, and moments that are not zero."""
    param = torch.nn.functional.normalize(normal(d_sae, width, seed=3), dim=1).to(DEVICE, dtype)
    mean = normal(d_sae, width, seed=4).to(DEVICE) / 8
    return [param, mean.to(moments or dtype), mean.square().to(moments or dtype)]


@each_dtype
@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize(("n_pairs", "n_rows"), [(0, 1), (1, 0), (2, 1)])
def test_update_from_any_number_of_parts(n_pairs, n_rows, unit_norm, dtype):
    grads = parts(n_pairs, n_rows, 7, 9, dtype)
    dense = normal(7, 9, seed=5, dtype=dtype).to(DEVICE)
    scale = torch.tensor(0.3, dtype=torch.promote_types(dtype, torch.float32), device=DEVICE)
    runs = []
    for kind, update in (
        (dtype, gpu_adam.adam_rows),
        (dtype, gpu_adam.adam_rows),
        (dtype, reference.adam_rows),
        (torch.float64, reference.adam_rows),
    ):
        tensors = [t.to(kind) for t in state(7, 9, dtype)]
        given = grads if kind == dtype else in_float64(grads)
        options = {"unit_norm": unit_norm, "parts": given, "scale": scale.to(kind)}
        update(tensors[0], dense.to(kind), *tensors[1:], step=3, **options, **HYPER)
        runs.append(tensors)
    for name, got, again, plain, truth in zip(["param", "m", "v"], *runs, strict=True):
        assert torch.equal(got, again), "two runs must give the same bits"
        assert_as_accurate(got, plain, truth, name)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32], ids=str)
def test_hyperparameters_on_the_device(kind):
    """Values read from the device act like the scalars, also in the stochastic rounding."""
    results = []
    for device_step in (False, True):
        tensors = state(7, 9, torch.float32, torch.bfloat16)
        grads = parts(1, 1, 7, 9, torch.float32)
        values = gpu_adam.hyper_values(5, **HYPER)
        scalars = {"step": 5, **HYPER}
        if device_step:  # the scalars are not read then
            scalars = {"step": 9, **dict.fromkeys(HYPER, 0.5)}
        gpu_adam.adam_rows(
            tensors[0],
            None,
            *tensors[1:],
            unit_norm=True,
            parts=grads,
            seed=7,
            hyper=torch.tensor(values, dtype=kind, device=DEVICE) if device_step else None,
            **scalars,
        )
        results.append(tensors)
    for name, scalar, device in zip(["param", "m", "v"], *results, strict=True):
        if kind == torch.float64:
            assert torch.equal(scalar, device), name
        else:
            torch.testing.assert_close(device, scalar, rtol=0.01, atol=1e-5, msg=name)


def test_lazy_does_not_change_rows_without_a_part():
    grads = parts(1, 0, 7, 9, torch.float32)  # latent 0 in all 9 rows: its list is cut
    grads.row_parts.append(
        RowPart(torch.tensor([5], device=DEVICE), torch.ones(1, 9, device=DEVICE))
    )
    touched = reference.dense_gradient(torch.Size([7, 9]), None, grads).abs().sum(1) > 0
    assert touched[0] and touched[5] and not touched[6]
    before, lazy, dense = (state(7, 9, torch.float32) for _ in range(3))
    for tensors, is_lazy in ((lazy, True), (dense, False)):
        gpu_adam.adam_rows(
            tensors[0],
            None,
            *tensors[1:],
            step=2,
            unit_norm=True,
            parts=grads,
            lazy=is_lazy,
            **HYPER,
        )
    for old, lazy_result, dense_result in zip(before, lazy, dense, strict=True):
        assert torch.equal(lazy_result[~touched], old[~touched])
        assert torch.equal(lazy_result[touched], dense_result[touched])
        assert not torch.equal(dense_result[~touched], old[~touched])


@pytest.mark.parametrize("unit_norm", [False, True])
def test_master_is_what_is_updated(unit_norm):
    wide, moments = state(7, 9, torch.float32)[0], state(7, 9, torch.float32)[1:]
    master, narrow = wide.clone(), wide.bfloat16()
    runs = [(wide, moments, None), (narrow, [t.clone() for t in moments], master)]
    for param, (m, v), copy in runs:
        for step in (1, 2):
            gpu_adam.adam_rows(
                param, None, m, v, step=step, unit_norm=unit_norm, master=copy,
                parts=parts(1, 1, 7, 9, torch.bfloat16, seed=step), **{**HYPER, "lr": 1e-4},
            )  # fmt: skip
    assert torch.equal(master, wide) and all(map(torch.equal, runs[0][1], runs[1][1]))
    # The interpreter truncates where a GPU rounds to nearest.
    torch.testing.assert_close(narrow.float(), wide, rtol=2**-7, atol=0)


@triton.jit
def _round_kernel(out_ptr, x_ptr, random_ptr, BLOCK: tl.constexpr):
    o_i = tl.arange(0, BLOCK)
    b_random = tl.load(random_ptr + o_i).to(tl.uint32)
    tl.store(out_ptr + o_i, gpu_adam._to_bf16(tl.load(x_ptr + o_i), b_random))


def rounded(x: torch.Tensor, random: int) -> torch.Tensor:
    out = torch.empty(len(x), dtype=torch.bfloat16, device=DEVICE)
    bits = torch.full((len(x),), random, dtype=torch.int32, device=DEVICE)
    _round_kernel[(1,)](out_ptr=out, x_ptr=x.to(DEVICE), random_ptr=bits, BLOCK=len(x))
    return out.float().cpu()


def test_stochastic_rounding_gives_a_neighbour_and_preserves_nan_and_inf():
    inf, nan, tiny = torch.inf, torch.nan, 1e-41
    x = torch.tensor([0.0, 1.0, 1.001, -1.001, inf, -inf, nan, tiny, -tiny, 3.38e38, 0.3, -0.0])
    low_nans = torch.tensor([0x7F800001, 0x7FFFFFFF, -0x7FFFFF, -1], dtype=torch.int32)
    x = torch.cat([x, low_nans.view(torch.float32)])
    down, up = rounded(x, 0), rounded(x, 0xFFFF)
    finite = x.isfinite()
    assert torch.equal(x.isnan(), down.isnan()) and torch.equal(x.isnan(), up.isnan())
    assert torch.equal(up[x.isinf()], x[x.isinf()]) and torch.equal(down[x.isinf()], x[x.isinf()])
    exact = x.bfloat16().float() == x
    assert torch.equal(up[exact], x[exact]) and torch.equal(down[exact], x[exact])
    x, down, up = (t[finite & ~exact].abs() for t in (x, down, up))
    assert (down < x).all() and (x < up).all()
    assert torch.equal(torch.nextafter(down.bfloat16(), torch.tensor(inf).bfloat16()).float(), up)


@triton.jit
def _bits_kernel(out_ptr, seed, step, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_d = tl.arange(0, BLOCK)
    b_bits = gpu_adam._random_bits(seed, tl.full((), step, tl.int64), row, block, o_d)
    dev = (row * tl.num_programs(1) + block) * BLOCK
    tl.store(out_ptr + dev + o_d, b_bits.to(tl.int64))


def bits(seed: int, step: int) -> torch.Tensor:
    """[rows, blocks, 1024]."""
    out = torch.empty(6, 2, 1024, dtype=torch.int64, device=DEVICE)
    _bits_kernel[6, 2](out_ptr=out, seed=seed, step=step, BLOCK=1024)
    return out.cpu()


def test_random_bits_are_uniform_and_uncorrelated():
    drawn = torch.stack([bits(1, 1), bits(2, 1), bits(1, 2), bits(2**40 + 1, 1)])
    assert torch.equal(drawn[0], bits(1, 1))
    streams = drawn.flatten(0, 2).double()  # [48, 1024]
    for half in (streams % 2**16, streams // 2**16):
        uniform = (half + 0.5) / 2**16
        assert abs(uniform.mean() - 0.5) < 4 * (1 / 12) ** 0.5 / uniform.numel() ** 0.5
        assert abs(uniform.var() - 1 / 12) < 1e-3
        # 48 streams, and each beside its next element: no two go together (4.5 sigma of 1 / 32)
        centred = torch.cat([uniform, uniform.roll(1, 1)]) - 0.5
        together = torch.corrcoef(centred) - torch.eye(96)
        assert together.abs().max() < 0.15
    for bit in range(32):
        share = (drawn >> bit & 1).double().mean()
        assert abs(share - 0.5) < 4 * 0.5 / drawn.numel() ** 0.5, bit


@mark_slow_in_interpreter
def test_bf16_moments_move_on_average():
    """beta2 = 0.999 moves exp_avg_sq by 1/8 of bf16's last place, which must show on average."""
    param, v = torch.zeros(64, 128, device=DEVICE), torch.ones(64, 128, device=DEVICE).bfloat16()
    m = torch.zeros_like(v)
    for step in range(1, 21):
        gpu_adam.adam_rows(
            param, torch.zeros_like(param), m, v, step=step, lr=0.0, beta1=0.9, beta2=0.999,
            eps=1e-8, unit_norm=False, seed=3,
        )  # fmt: skip
    # The standard error is 0.0003: 20 steps that each miss by at most 0.004, over 8,192 elements.
    assert v.double().mean().item() == pytest.approx(0.999**20, abs=1.5e-3)
    assert v.unique().numel() > 3


def test_decode_backward_over_cut_lists_equals_the_reference():
    """The codes are ragged and have one latent in most slots."""
    from sae_kernels.decode import decode

    codes = ragged([3, 0, 9, 1], 6, seed=2, dtype=torch.float64)
    indices = torch.where(torch.arange(13) % 3 == 0, codes.indices, 4)
    results = []
    for implementation, dev in (("triton", DEVICE), ("reference", "cpu")):
        args = [codes.values.to(dev), normal(6, 5, seed=1).to(dev), normal(5, seed=2).to(dev)]
        args = [t.clone().requires_grad_() for t in args]
        codes_on_device = Codes(args[0], indices.to(dev), 6, codes.offsets.to(dev))
        x_hat = decode(codes_on_device, *args[1:], backend=implementation)
        results.append(torch.autograd.grad(x_hat, args, normal(4, 5, seed=3).to(dev)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-12, atol=1e-12)
