"""The arithmetic of conversion against slow, obvious references."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_atesd.checkpoint.name_table import Operation
from megatron_atesd.checkpoint.tensor_parts import join, pack_qkv, take, unpack_qkv

SIZES = st.integers(1, 4)


def rows(count: int, width: int) -> torch.Tensor:
    return torch.arange(count * width, dtype=torch.float32).reshape(count, width)


def attention(groups: int, heads_a_group: int, head_size: int, hidden: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value whose entries are all different."""
    heights = [groups * heads_a_group * head_size, groups * head_size, groups * head_size]
    query, key, value = rows(sum(heights), hidden).split(heights)
    return query, key, value


@given(SIZES, SIZES, SIZES, SIZES)
def test_qkv_lists_each_groups_heads_then_its_key_then_its_value(groups: int, heads_a_group: int, head_size: int, hidden: int):
    query, key, value = attention(groups, heads_a_group, head_size, hidden)
    expected = []
    for group in range(groups):
        for head in range(group * heads_a_group, (group + 1) * heads_a_group):
            expected += list(query[head * head_size : (head + 1) * head_size])
        expected += list(key[group * head_size : (group + 1) * head_size]) + list(value[group * head_size : (group + 1) * head_size])
    assert torch.equal(pack_qkv(query, key, value, groups), torch.stack(expected))


@given(SIZES, SIZES, SIZES, SIZES)
def test_unpacked_qkv_is_what_was_packed(groups: int, heads_a_group: int, head_size: int, hidden: int):
    parts = attention(groups, heads_a_group, head_size, hidden)
    assert all(torch.equal(a, b) for a, b in zip(unpack_qkv(pack_qkv(*parts, groups), groups, head_size), parts, strict=True))


@given(SIZES, SIZES, SIZES, SIZES, SIZES)
def test_qkv_shards_stacked_are_the_whole(size: int, groups_a_rank: int, heads_a_group: int, head_size: int, hidden: int):
    groups = size * groups_a_rank
    parts = attention(groups, heads_a_group, head_size, hidden)
    shards = [join([take(p, p.shape, "qkv", size, rank) for p in parts], "qkv", groups_a_rank) for rank in range(size)]
    assert torch.equal(torch.cat(shards), pack_qkv(*parts, groups))


@given(SIZES, SIZES, SIZES)
def test_a_gate_up_shard_is_its_gate_rows_above_its_up_rows(size: int, width: int, hidden: int):
    gate, up = rows(size * width, hidden), -rows(size * width, hidden)
    for rank in range(size):
        mine = slice(rank * width, (rank + 1) * width)
        shard = join([take(t, t.shape, "gate_up", size, rank) for t in (gate, up)], "gate_up", 1)
        assert torch.equal(shard, torch.cat([gate[mine], up[mine]]))


@given(SIZES, SIZES, SIZES)
def test_column_shards_side_by_side_are_the_whole(size: int, width: int, hidden: int):
    whole = rows(hidden, size * width)
    assert torch.equal(torch.cat([take(whole, whole.shape, "columns", size, rank) for rank in range(size)], dim=1), whole)


@given(st.integers(1, 20), st.integers(1, 6))
def test_vocabulary_shards_are_equal_in_height_and_padded_with_zeros(vocabulary: int, size: int):
    whole = rows(vocabulary, 3) + 1
    shards = [take(whole, whole.shape, "vocabulary", size, rank) for rank in range(size)]
    stacked = torch.cat(shards)
    assert {len(shard) for shard in shards} == {-(-vocabulary // size)}
    assert torch.equal(stacked[:vocabulary], whole)
    assert not stacked[vocabulary:].any()


def test_every_rank_holds_a_copied_tensor_whole():
    norm = torch.arange(5.0)
    assert all(torch.equal(take(norm, norm.shape, "copy", 3, rank), norm) for rank in range(3))


@pytest.mark.parametrize(("operation", "shape"), [("qkv", (6, 4)), ("gate_up", (6, 4)), ("columns", (4, 6))])
def test_a_width_that_tp_does_not_divide_is_refused(operation: Operation, shape: tuple[int, int]):
    with pytest.raises(ValueError, match="not a multiple of tensor-parallel size 4"):
        take(torch.zeros(shape), shape, operation, 4, 0)
