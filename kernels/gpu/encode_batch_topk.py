"""The n largest pre-activations of a batch, exactly, on the GPU: `cpu.encode_threshold.largest`
there.

Pre-activations come rounded to the inputs' dtype and are compared as ordered integers, the keys of
`gpu.encode_topk`. A place is row * d_sae + column; ties go to the lowest. The sequence of launches
is fixed, and nothing waits:
- the n largest so far and the next chunk are all that matters later, so n keys are kept;
- the n largest of a chunk lie in the n of its groups of 32 columns that lead by their maximum (ties
  to the lowest group): the maxima of n groups that lead it are n elements ahead of all in a group;
- both choices are one radix search over a list of keys, 8 bits a pass: a histogram of a digit over
  the keys that agree with the digits found fixes the next, whatever the keys and their ties;
- what is taken, above the n-th key or equal to it and early enough, is written at its rank.
So a chunk is read once for its maxima, and 32 columns again for each group that could still matter:
those whose maximum exceeds the least of n kept keys. Histograms are sums of integers by atomics,
whose order cannot show.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_kernels.cpu.encode_threshold import Slots, slots_of
from sae_kernels.gpu.encode_topk import GROUP, bits, group_maxima, key_constants, keys
from sae_kernels.gpu.encoder_matmul import fits
from sae_kernels.gpu.launch import on_device_of
from sae_kernels.gpu.pre_acts import acts_chunks, design, pre_acts_chunks

_BLOCK = 1024
_BLOCKS = 16  # of one program of the histogram, so that it adds to the 256 sums less often


@triton.jit
def _load_keys(keys_ptr, floor_ptr, o_p, length, KEY: tl.constexpr):
    """Keys at o_p, those that do not exceed the floor as 0, and which exist."""
    m_p = o_p < length
    b_key = tl.load(keys_ptr + o_p, mask=m_p, other=0).to(KEY)
    if floor_ptr is not None:
        b_key = tl.where(b_key > tl.load(floor_ptr).to(KEY), b_key, 0)
    return b_key, m_p


@triton.jit
def _length(size, n, groups_state_ptr, GROUP: tl.constexpr):
    """How many keys a list has: all, or n kept ones and the members of the groups taken."""
    if groups_state_ptr is None:
        return size
    else:
        return n + GROUP * tl.load(groups_state_ptr + 1)


@triton.jit
def _kth(histograms_ptr, n, KEY: tl.constexpr, DIGITS: tl.constexpr, DONE: tl.constexpr):
    """The first DONE digits of the n-th largest key, and its rank among keys that start so."""
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
    """histograms[DONE] += how often each digit comes next in the keys that start like the n-th."""
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
    """ranks[0, block], ranks[1, block]: how many keys are above the n-th, and equal to it."""
    block = tl.program_id(0).to(tl.int64)
    kth, _ = _kth(histograms_ptr, n, KEY, DIGITS, DIGITS)
    length = _length(size, n, groups_state_ptr, GROUP)
    o_p = block * BLOCK + tl.arange(0, BLOCK)
    b_key, m_p = _load_keys(keys_ptr, floor_ptr, o_p, length, KEY)
    tl.store(ranks_ptr + block, tl.sum((m_p & (b_key > kth)).to(tl.int32), axis=0))
    ranks_ptr += tl.num_programs(0)
    tl.store(ranks_ptr + block, tl.sum((m_p & (b_key == kth)).to(tl.int32), axis=0))


@triton.jit
def _take_kernel(
    places_ptr,
    taken_ptr,
    state_ptr,
    ranks_ptr,
    histograms_ptr,
    keys_ptr,
    floor_ptr,
    groups_ptr,
    groups_state_ptr,
    kept_ptr,
    size,
    n,
    first_row,
    d_sae,
    KEY: tl.constexpr,
    DIGITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Places (and keys) of the n largest, in their order; state: the n-th key, how many there are.

    ranks [2, blocks] of `_rank_kernel`, summed up to and with each block. Without groups the place
    is the position in the list. With them the list has n kept keys, whose places are at kept_ptr,
    and then the members of the groups of a chunk that starts at first_row.
    """
    block = tl.program_id(0).to(tl.int64)
    blocks = tl.num_programs(0)
    kth, room = _kth(histograms_ptr, n, KEY, DIGITS, DIGITS)
    room = tl.where(kth > 0, room, 0)  # 0 is what is not positive
    above = tl.load(ranks_ptr + block - 1, mask=block > 0, other=0)
    equal = tl.load(ranks_ptr + blocks + block - 1, mask=block > 0, other=0)
    length = _length(size, n, groups_state_ptr, GROUP)
    o_p = block * BLOCK + tl.arange(0, BLOCK)
    b_key, m_p = _load_keys(keys_ptr, floor_ptr, o_p, length, KEY)
    b_equal = (m_p & (b_key == kth)).to(tl.int32)
    m_equal = (b_equal > 0) & (equal + tl.cumsum(b_equal, axis=0) <= room)
    m_take = (m_p & (b_key > kth)) | m_equal
    o_out = above + tl.minimum(equal, room) + tl.cumsum(m_take.to(tl.int32), axis=0) - 1
    b_place = o_p
    if groups_ptr is not None:
        m_kept = o_p < n
        b_kept = tl.load(kept_ptr + o_p, mask=m_take & m_kept, other=0)
        o_m = tl.where(m_kept, 0, o_p - n)
        b_group = tl.load(groups_ptr + o_m // GROUP, mask=m_take & ~m_kept, other=0)
        n_groups = tl.cdiv(d_sae, GROUP)
        b_row = first_row + (b_group // n_groups).to(tl.int64)
        b_place = b_row * d_sae + b_group % n_groups * GROUP + o_m % GROUP
        b_place = tl.where(m_kept, b_kept, b_place)
        tl.store(taken_ptr + o_out, b_key.to(taken_ptr.dtype.element_ty), mask=m_take)
    tl.store(places_ptr + o_out, b_place.to(places_ptr.dtype.element_ty), mask=m_take)
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
    """The keys of the columns of each group taken; BLOCK groups a program."""
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


def _take(keys: Tensor, n: int, dtype: torch.dtype, places: Tensor, state: Tensor, **more) -> None:
    """`_take_kernel` on `keys`, with what it needs first. n is at most len(keys)."""
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
    _take_kernel[(blocks,)](
        places_ptr=places, state_ptr=state, ranks_ptr=ranks.cumsum(1), **more, **arguments
    )


def _leading_groups(maxima: Tensor, n: int, floor: Tensor) -> tuple[Tensor, Tensor]:
    """The n groups that lead, ascending, of those above `floor`; state[1] is how many there are."""
    keys, state = bits(maxima).flatten(), floor.new_empty(2)
    if n >= len(keys):
        every = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
        return every, state.fill_(len(keys))
    groups = torch.empty(n, dtype=torch.int32, device=keys.device)
    nothing = dict.fromkeys(["taken_ptr", "groups_ptr", "groups_state_ptr", "kept_ptr"])
    _take(keys, n, maxima.dtype, groups, state, floor_ptr=floor, first_row=0, d_sae=0, **nothing)
    return groups, state


def largest(centred: Tensor, W_rows: Tensor, bias: Tensor, n: int) -> Slots:
    """The n largest positive pre-activations of the batch; ties go to the lowest place.

    Beside the chunk it holds at most 33 keys for each of n. Nothing waits for the device, but for
    the first fused product of a shape (`gpu.encoder_matmul.encode`).
    """
    batch, d_sae = centred.shape[0], W_rows.shape[0]
    fused = design(centred.shape[1], d_sae, centred.dtype) == "fused"
    if fused and fits(centred, W_rows, GROUP):
        chunks = acts_chunks(centred, W_rows, bias.contiguous(), GROUP)
    else:
        chunks = pre_acts_chunks(centred, W_rows, bias)
        chunks = ((rows, pre, group_maxima(pre)) for rows, pre in chunks)
    kept = bits(centred.new_zeros(n))
    places = torch.full((n,), batch * d_sae, dtype=torch.int64, device=centred.device)
    state = torch.zeros(2, dtype=torch.int64, device=centred.device)
    with on_device_of(centred):
        for rows, pre, maxima in chunks:
            groups, groups_state = _leading_groups(maxima, n, state)
            keys = kept.new_empty(n + GROUP * len(groups))
            keys[:n] = kept
            block = 128
            _members_kernel[(triton.cdiv(len(groups), block),)](
                keys_ptr=keys[n:],
                bits_ptr=bits(pre),
                groups_ptr=groups,
                groups_state_ptr=groups_state,
                d_sae=d_sae,
                **key_constants(pre.dtype),
                GROUP=GROUP,
                BLOCK=block,
            )
            old_places = places
            places = torch.full_like(places, batch * d_sae)
            kept, state = torch.zeros_like(kept), torch.zeros_like(state)
            _take(
                keys,
                n,
                pre.dtype,
                places,
                state,
                taken_ptr=kept,
                floor_ptr=None,
                groups_ptr=groups,
                groups_state_ptr=groups_state,
                kept_ptr=old_places,
                first_row=rows.start,
                d_sae=d_sae,
            )
    wide = torch.promote_types(centred.dtype, torch.float32)
    values = kept.view(centred.dtype).to(wide)
    return slots_of(places, torch.where(values == 0, -torch.inf, values), batch, d_sae)
