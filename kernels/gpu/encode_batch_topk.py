"""The n largest pre-activations of a batch (BatchTopK), exactly, on the GPU.

Pre-activations are rounded to the inputs' dtype and compared as ordered integers, the keys of
`gpu.encode_topk`. A flat position is row * d_sae + column; ties go to the lowest. The sequence of
launches is fixed, and nothing waits for the device:
- Only the n largest so far and the next chunk matter later, so n keys are kept.
- The n largest of a chunk lie in the n groups of 32 columns with the largest maxima (ties go to the
  lowest group): the maxima of n groups ahead of another are n elements ahead of all its elements.
- Both selections are one radix search over a list of keys, 8 bits a pass. A histogram of a digit,
  over the keys that agree with the digits known so far, fixes the next digit for any keys and ties.
- A selected key is above the n-th key, or equal to it and early enough; it is written at its rank.
So a chunk is read once for its maxima, and 32 columns are read again for each group that could
still matter: those whose maximum exceeds the least of n kept keys. Histograms are integer sums by
atomics, so their order has no effect. `cpu.encode_batch_topk` has the same function.
"""

# Triton's annotations describe code inside a kernel: a launch takes plain values for constexpr.
# pyright: reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportCallIssue=false, reportInvalidTypeForm=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.gpu.encode_topk import GROUP, as_integers, group_maxima, key_constants, keys
from sae_kernels.gpu.encoder_matmul import fits
from sae_kernels.gpu.launch import on_device_of
from sae_kernels.gpu.pre_acts import acts_chunks, choose_product, pre_acts_chunks
from sae_kernels.slots import Slots, slots_from_positions

_BLOCK = 1024
_BLOCKS = 16  # blocks per program of the histogram; fewer atomic additions to its 256 sums


@triton.jit
def _load_keys(keys_ptr, floor_ptr, o_p, length, KEY: tl.constexpr):
    """Return the keys at o_p, 0 for those that do not exceed the floor, and which of them exist."""
    m_p = o_p < length
    b_key = tl.load(keys_ptr + o_p, mask=m_p, other=0).to(KEY)
    if floor_ptr is not None:
        b_key = tl.where(b_key > tl.load(floor_ptr).to(KEY), b_key, 0)
    return b_key, m_p


@triton.jit
def _length(size, n, groups_state_ptr, GROUP: tl.constexpr):
    """Return the length of a list: `size`, or n kept keys plus the selected groups' members."""
    if groups_state_ptr is None:
        return size
    else:
        return n + GROUP * tl.load(groups_state_ptr + 1)


@triton.jit
def _kth(histograms_ptr, n, KEY: tl.constexpr, DIGITS: tl.constexpr, DONE: tl.constexpr):
    """Return the first DONE digits of the n-th largest key, and its rank among keys with them."""
    o_bin = tl.arange(0, 256)
    kth = tl.zeros((), KEY)
    room = n
    for i in tl.static_range(DONE):
        b_count = tl.load(histograms_ptr + 256 * i + o_bin)
        b_at_least = tl.cumsum(b_count, axis=0, reverse=True)
        digit = tl.sum((b_at_least >= room).to(tl.int32), axis=0) - 1
        room -= tl.sum(tl.where(o_bin > digit, b_count, 0), axis=0)
        kth |= digit.to(KEY) << (8 * (DIGITS - 1 - i))
    return kth, room


@triton.jit
def _histogram_kernel(
    histograms_ptr,
    keys_ptr,
    floor_ptr,
    groups_state_ptr,
    size,
    n,
    KEY: tl.constexpr,
    DIGITS: tl.constexpr,
    DONE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Add to histograms[DONE] the next digits of the keys that start like the n-th largest."""
    kth, _ = _kth(histograms_ptr, n, KEY, DIGITS, DONE)
    shift: tl.constexpr = 8 * (DIGITS - 1 - DONE)
    length = _length(size, n, groups_state_ptr, GROUP)
    first = tl.program_id(0).to(tl.int64) * BLOCK * BLOCKS
    b_count = tl.zeros((256,), tl.int32)
    for p in range(first, tl.minimum(first + BLOCK * BLOCKS, length), BLOCK):
        b_key, m_p = _load_keys(keys_ptr, floor_ptr, p + tl.arange(0, BLOCK), length, KEY)
        m_same = m_p & ((((b_key ^ kth) >> shift) >> 8) == 0)
        b_count += tl.histogram(((b_key >> shift) & 255).to(tl.int32), 256, mask=m_same)
    o_bin = tl.arange(0, 256)
    tl.atomic_add(histograms_ptr + 256 * DONE + o_bin, b_count, mask=b_count > 0, sem="relaxed")


@triton.jit
def _rank_kernel(
    ranks_ptr,
    histograms_ptr,
    keys_ptr,
    floor_ptr,
    groups_state_ptr,
    size,
    n,
    KEY: tl.constexpr,
    DIGITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store how many keys of a block are above the n-th (ranks[0]) and equal to it (ranks[1])."""
    block = tl.program_id(0).to(tl.int64)
    kth, _ = _kth(histograms_ptr, n, KEY, DIGITS, DIGITS)
    length = _length(size, n, groups_state_ptr, GROUP)
    o_p = block * BLOCK + tl.arange(0, BLOCK)
    b_key, m_p = _load_keys(keys_ptr, floor_ptr, o_p, length, KEY)
    tl.store(ranks_ptr + block, tl.sum((m_p & (b_key > kth)).to(tl.int32), axis=0))
    ranks_ptr += tl.num_programs(0)
    tl.store(ranks_ptr + block, tl.sum((m_p & (b_key == kth)).to(tl.int32), axis=0))


@triton.jit
def _compact_kernel(
    positions_ptr,
    out_keys_ptr,
    state_ptr,
    ranks_ptr,
    histograms_ptr,
    keys_ptr,
    floor_ptr,
    groups_ptr,
    groups_state_ptr,
    kept_positions_ptr,
    size,
    n,
    first_row,
    d_sae,
    KEY: tl.constexpr,
    DIGITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the positions (and keys) of the n largest, in order, and the state.

    The state is the n-th key and the number of keys written. ranks [2, blocks] is from
    `_rank_kernel`, summed up to and including each block. Without groups, a position is the
    position in the list. With groups, the list has n kept keys, whose positions are at
    kept_positions_ptr, followed by the members of the selected groups of a chunk that starts at
    first_row.
    """
    block = tl.program_id(0).to(tl.int64)
    blocks = tl.num_programs(0)
    kth, room = _kth(histograms_ptr, n, KEY, DIGITS, DIGITS)
    room = tl.where(kth > 0, room, 0)  # 0 is the key of everything that is not positive
    above = tl.load(ranks_ptr + block - 1, mask=block > 0, other=0)
    equal = tl.load(ranks_ptr + blocks + block - 1, mask=block > 0, other=0)
    length = _length(size, n, groups_state_ptr, GROUP)
    o_p = block * BLOCK + tl.arange(0, BLOCK)
    b_key, m_p = _load_keys(keys_ptr, floor_ptr, o_p, length, KEY)
    b_equal = (m_p & (b_key == kth)).to(tl.int32)
    m_equal = (b_equal > 0) & (equal + tl.cumsum(b_equal, axis=0) <= room)
    m_taken = (m_p & (b_key > kth)) | m_equal
    o_out = above + tl.minimum(equal, room) + tl.cumsum(m_taken.to(tl.int32), axis=0) - 1
    b_position = o_p
    if groups_ptr is not None:
        m_kept = o_p < n
        b_kept_position = tl.load(kept_positions_ptr + o_p, mask=m_taken & m_kept, other=0)
        o_m = tl.where(m_kept, 0, o_p - n)
        b_group = tl.load(groups_ptr + o_m // GROUP, mask=m_taken & ~m_kept, other=0)
        n_groups = tl.cdiv(d_sae, GROUP)
        b_row = first_row + (b_group // n_groups).to(tl.int64)
        b_position = b_row * d_sae + b_group % n_groups * GROUP + o_m % GROUP
        b_position = tl.where(m_kept, b_kept_position, b_position)
        tl.store(out_keys_ptr + o_out, b_key.to(out_keys_ptr.dtype.element_ty), mask=m_taken)
    tl.store(positions_ptr + o_out, b_position.to(positions_ptr.dtype.element_ty), mask=m_taken)
    if block == blocks - 1:
        above = tl.load(ranks_ptr + blocks - 1)
        equal = tl.load(ranks_ptr + 2 * blocks - 1)
        tl.store(state_ptr, kth.to(tl.int64))
        tl.store(state_ptr + 1, above + tl.minimum(equal, room))


@triton.jit
def _members_kernel(
    keys_ptr,
    bits_ptr,
    groups_ptr,
    groups_state_ptr,
    d_sae,
    INF: tl.constexpr,
    TOP: tl.constexpr,
    KEY: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the keys of all columns of each selected group. A program has BLOCK groups."""
    o_g = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_g = o_g < tl.load(groups_state_ptr + 1)
    b_group = tl.load(groups_ptr + o_g, mask=m_g, other=0)
    n_groups = tl.cdiv(d_sae, GROUP)
    o_m = tl.arange(0, GROUP)
    o_c = (b_group % n_groups * GROUP)[:, None] + o_m[None, :]
    b_row = (b_group // n_groups).to(tl.int64)
    m_c = m_g[:, None] & (o_c < d_sae)
    b_bits = tl.load(bits_ptr + b_row[:, None] * d_sae + o_c, mask=m_c, other=0)
    b_key = keys(b_bits, INF, TOP, KEY).to(keys_ptr.dtype.element_ty)
    tl.store(keys_ptr + o_g[:, None] * GROUP + o_m[None, :], b_key, mask=m_g[:, None])


def _select_n(
    keys: Tensor, n: int, dtype: torch.dtype, positions: Tensor, state: Tensor, **more
) -> None:
    """Find the n largest of `keys` and run `_compact_kernel` on them. n is at most len(keys)."""
    constants = key_constants(dtype)
    digits = dtype.itemsize
    histograms = keys.new_zeros((digits, 256), dtype=torch.int32)
    arguments = {
        "histograms_ptr": histograms,
        "keys_ptr": keys,
        "floor_ptr": more.pop("floor_ptr"),
        "groups_state_ptr": more.pop("groups_state_ptr"),
        "size": len(keys),
        "n": n,
        "KEY": constants["KEY"],
        "DIGITS": digits,
        "GROUP": GROUP,
        "BLOCK": _BLOCK,
    }
    blocks = triton.cdiv(len(keys), _BLOCK)
    for done in range(digits):
        grid = (triton.cdiv(blocks, _BLOCKS),)
        _histogram_kernel[grid](DONE=done, BLOCKS=_BLOCKS, **arguments)
    ranks = keys.new_empty((2, blocks), dtype=torch.int32)
    _rank_kernel[(blocks,)](ranks_ptr=ranks, **arguments)
    _compact_kernel[(blocks,)](
        positions_ptr=positions, state_ptr=state, ranks_ptr=ranks.cumsum(1), **more, **arguments
    )


def _leading_groups(maxima: Tensor, n: int, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the n groups with the largest maxima above `floor`, ascending, and the state."""
    keys, state = as_integers(maxima).flatten(), floor.new_empty(2)
    if n >= len(keys):
        every = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
        return every, state.fill_(len(keys))
    groups = torch.empty(n, dtype=torch.int32, device=keys.device)
    unused = dict.fromkeys(["out_keys_ptr", "groups_ptr", "groups_state_ptr", "kept_positions_ptr"])
    _select_n(keys, n, maxima.dtype, groups, state, floor_ptr=floor, first_row=0, d_sae=0, **unused)
    return groups, state


def largest(centred: Tensor, W_rows: Tensor, bias: Tensor, n: int) -> Slots:
    """Return the n largest positive pre-activations of the batch; ties go to the lowest position.

    Besides the chunk it holds at most 33 keys for each of the n. Nothing waits for the device,
    except the first fused product of a shape (`gpu.encoder_matmul.encode`).
    """
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    fused = choose_product(centred.shape[1], d_sae, centred.dtype) == "fused"
    if fused and fits(centred, W_rows, GROUP):
        chunks = acts_chunks(centred, W_rows, bias.contiguous(), GROUP)
    else:
        chunks = pre_acts_chunks(centred, W_rows, bias)
        chunks = ((rows, pre, group_maxima(pre)) for rows, pre in chunks)
    kept_keys = as_integers(centred.new_zeros(n))
    positions = torch.full((n,), batch * d_sae, dtype=torch.int64, device=centred.device)
    state = torch.zeros(2, dtype=torch.int64, device=centred.device)
    with on_device_of(centred):
        for rows, pre, maxima in chunks:
            groups, groups_state = _leading_groups(maxima, n, state)
            keys = kept_keys.new_empty(n + GROUP * len(groups))
            keys[:n] = kept_keys
            block = 128
            _members_kernel[(triton.cdiv(len(groups), block),)](
                keys_ptr=keys[n:],
                bits_ptr=as_integers(pre),
                groups_ptr=groups,
                groups_state_ptr=groups_state,
                d_sae=d_sae,
                **key_constants(pre.dtype),
                GROUP=GROUP,
                BLOCK=block,
            )
            kept_positions = positions
            positions = torch.full_like(positions, batch * d_sae)
            kept_keys, state = torch.zeros_like(kept_keys), torch.zeros_like(state)
            _select_n(
                keys,
                n,
                pre.dtype,
                positions,
                state,
                out_keys_ptr=kept_keys,
                floor_ptr=None,
                groups_ptr=groups,
                groups_state_ptr=groups_state,
                kept_positions_ptr=kept_positions,
                first_row=rows.start,
                d_sae=d_sae,
            )
    acc_dtype = torch.promote_types(centred.dtype, torch.float32)
    values = kept_keys.view(centred.dtype).to(acc_dtype)
    return slots_from_positions(
        positions, torch.where(values == 0, -torch.inf, values), batch, d_sae
    )
