"""Micro-batches: what goes together, what only pads, and that every rank always has one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_atesd.model.micro_batches import Needs, Pair, micro_batches, padding_share
from megatron_atesd.parallel import cpu_backend

LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 9)), max_size=12)


@pytest.fixture(autouse=True, scope="module")
def _cpu() -> None:
    cpu_backend.install()


def pairs_of(lengths: list[tuple[int, int]]) -> list[Pair]:
    """Pairs whose tokens are all different, so that each shows where it came from."""
    ids = iter(range(1, 10_000))
    return [([next(ids) for _ in range(prompt)], [next(ids) for _ in range(response)]) for prompt, response in lengths]


@given(lengths=LENGTHS, tokens=st.integers(1, 60), multiple=st.sampled_from([1, 2, 4]))
@settings(max_examples=60)
def test_every_pair_is_in_one_micro_batch_with_its_tokens(lengths: list[tuple[int, int]], tokens: int, multiple: int) -> None:
    pairs = pairs_of(lengths)
    batches = micro_batches(pairs, tokens, Needs(multiple))
    assert sorted(member for batch in batches for member in batch.members) == list(range(len(pairs)))
    for batch in batches:
        for row, member in enumerate(batch.members):
            prompt, response = pairs[member]
            assert batch.ids_BS[row].tolist()[: len(prompt) + len(response)] == [*prompt, *response]
            assert batch.targets_T[batch.sequence_T == row].tolist() == list(response)


@given(lengths=LENGTHS, tokens=st.integers(1, 60), multiple=st.sampled_from([1, 2, 4]))
@settings(max_examples=60)
def test_the_budget_holds_unless_one_pair_alone_exceeds_it(lengths: list[tuple[int, int]], tokens: int, multiple: int) -> None:
    for batch in micro_batches(pairs_of(lengths), tokens, Needs(multiple)):
        assert batch.ids_BS.numel() <= tokens or len(batch.ids_BS) == 1
        assert batch.ids_BS.shape[1] % multiple == 0


@given(lengths=LENGTHS, count_multiple=st.integers(1, 4))
@settings(max_examples=30)
def test_the_number_of_micro_batches_is_never_zero_and_a_multiple(lengths: list[tuple[int, int]], count_multiple: int) -> None:
    batches = micro_batches(pairs_of(lengths), 16, Needs(2, count=count_multiple))
    assert batches
    assert len(batches) % count_multiple == 0
    for filler in (batch for batch in batches if not batch.members):
        assert filler.ids_BS.shape == (1, 2)
        assert len(filler.targets_T) == 0


def test_a_response_token_is_predicted_by_the_state_before_it() -> None:
    (batch,) = micro_batches([([1, 2, 3], [4, 5]), ([6], [7])], 100)
    states = batch.ids_BS[..., None].float()  # each position's state is its token
    assert batch.response_hidden(states)[:, 0].tolist() == [3.0, 4.0, 6.0]


def test_sorting_pads_less_than_the_given_order_would() -> None:
    pairs = pairs_of([(2, 2), (12, 8), (2, 3), (12, 7)])
    batches = micro_batches(pairs, 40)
    assert [batch.members for batch in batches] == [(1, 3), (2, 0)]
    assert padding_share(batches, pairs) == (1 + 1, 40 + 10)


def test_padding_counts_what_fills_a_missing_micro_batch() -> None:
    pairs = pairs_of([(3, 2)])
    padding, slots = padding_share(micro_batches(pairs, 40, Needs(4, count=2)), pairs)
    assert (padding, slots) == (3 + 4, 8 + 4)


def test_the_lengths_of_responses_are_told_apart() -> None:
    (batch,) = micro_batches([([1], [2, 3]), ([4, 5, 6], []), ([7], [8])], 100)
    assert torch.equal(batch.lengths_N, torch.tensor([2, 0, 1])[list(batch.members)])


@given(lengths=LENGTHS, tokens=st.integers(1, 60), multiple=st.sampled_from([1, 4, 12]), sequence=st.sampled_from([1, 4]))
@settings(max_examples=60)
def test_packed_sequences_lie_between_bounds_within_the_budget(
    lengths: list[tuple[int, int]], tokens: int, multiple: int, sequence: int
) -> None:
    pairs = pairs_of(lengths)
    batches = micro_batches(pairs, tokens, Needs(multiple * sequence, sequence, packed=True))
    assert sorted(member for batch in batches for member in batch.members) == list(range(len(pairs)))
    for batch in batches:
        assert batch.bounds is not None
        assert batch.ids_BS.shape == (1, batch.bounds[-1])
        assert batch.bounds[-1] % (multiple * sequence) == 0
        assert batch.bounds[-1] <= tokens or len(batch.bounds) == 2
        for start, stop, member in zip(batch.bounds, batch.bounds[1:], batch.members, strict=False):
            ids = [*pairs[member][0], *pairs[member][1]]
            assert batch.ids_BS[0, start:stop].tolist() == ids + [0] * (stop - start - len(ids))
            assert (stop - start) % sequence == 0


def test_a_packed_response_token_is_predicted_by_the_state_before_it() -> None:
    (batch,) = micro_batches([([1, 2, 3], [4, 5]), ([6], [7])], 100, Needs(packed=True))
    states = batch.ids_BS[..., None].float()
    assert batch.response_hidden(states)[:, 0].tolist() == [3.0, 4.0, 6.0]


def test_packed_sequences_fill_micro_batches_without_padding() -> None:
    pairs = pairs_of([(2, 2), (12, 8), (2, 3), (12, 7)])
    batches = micro_batches(pairs, 24, Needs(packed=True))
    assert [batch.members for batch in batches] == [(1, 0), (3, 2)]
    assert padding_share(batches, pairs) == (0, 48)


@pytest.mark.parametrize("packed", [False, True])
def test_the_shares_of_context_ranks_are_all_response_tokens_once(packed: bool) -> None:
    pairs = pairs_of([(2, 5), (3, 0), (1, 1)])
    (whole,) = micro_batches(pairs, 100, Needs(4, 4, packed=packed))
    shares = [micro_batches(pairs, 100, Needs(4, 4, packed=packed, share=(rank, 2)))[0] for rank in (0, 1)]
    assert [share.shared_lengths() for share in shares] == [[3, 0, 1], [2, 0, 0]]
    tokens = [(*row,) for share in shares for row in zip(share.positions_T.tolist(), share.targets_T.tolist(), strict=True)]
    assert sorted(tokens) == list(zip(whole.positions_T.tolist(), whole.targets_T.tolist(), strict=True))


def test_an_empty_prompt_is_refused() -> None:
    """The last token of the sequence before it would seem to predict its response."""
    with pytest.raises(ValueError, match="a prompt is empty"):
        micro_batches([([5], [1, 2]), ([], [3])], 100)
