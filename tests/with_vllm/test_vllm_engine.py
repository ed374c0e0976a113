"""vLLM as rollout engine, for real, on a CPU: what it samples, what it reports, what it has after an update, TP 1 and 2, head tied and not.

Needs vLLM: `make test-vllm`.
"""

from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from tests.support.launch import run_distributed
from tests.support.small_run import save_inputs
from tests.support.vllm_ranks import (
    FIRST_TOKENS,
    FIRSTS,
    KNOWN,
    NEW_TOKENS,
    SAMPLINGS,
    STOP,
    crowded,
    engine_facts,
    half_precision_gap,
    save_models,
    stopped_by_text,
    told_by_stages,
)

CASES = {"tied": (True, 1), "own head": (False, 1), "tied, TP 2": (True, 2), "own head, TP 2": (False, 2)}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of each case what `engine_facts` found on its ranks, once."""
    found: dict[str, list[dict[str, Any]]] = {}

    def of(case: str) -> list[dict[str, Any]]:
        if case not in found:
            tied, tensor = CASES[case]
            folder = save_models(tmp_path_factory.mktemp("models"), tied)
            found[case] = run_distributed(engine_facts, tensor, folder, tensor)
        return found[case]

    return of


@pytest.mark.parametrize("case", CASES)
def test_greedy_responses_are_the_training_engines_before_and_after_updates(facts: Any, case: str):
    fact = facts(case)[0]
    theirs, ours = fact["before"]
    assert [r.ids for r in theirs] == [r.ids for r in ours]
    assert [r.ids for r in fact["theirs"]["greedy"]] == [r.ids for r in fact["ours"]["greedy"]]
    assert [r.ids for r in theirs] != [r.ids for r in fact["theirs"]["greedy"]]  # the updates moved something


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sampling", ["whole", "cut"])
def test_a_seed_draws_what_it_draws_in_the_training_engine(facts: Any, case: str, sampling: str):
    fact = facts(case)[0]
    assert [(r.ids, r.truncated, r.text_end) for r in fact["theirs"][sampling]] == [
        (r.ids, r.truncated, r.text_end) for r in fact["ours"][sampling]
    ]


@pytest.mark.parametrize("case", CASES)
def test_the_same_call_again_gives_the_same_responses(facts: Any, case: str):
    fact = facts(case)[0]
    assert fact["again"] == fact["theirs"]


@pytest.mark.parametrize("case", ["tied, TP 2", "own head, TP 2"])
def test_tensor_parallel_ranks_have_equal_responses(facts: Any, case: str):
    one, other = facts(case)
    assert one["theirs"] == other["theirs"]


@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_are_the_whole_softmax_at_the_samplings_temperature(facts: Any, case: str):
    assert max(facts(case)[0]["gaps"].values()) < 2e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sampling", FIRSTS)
def test_a_first_token_is_distributed_as_the_settings_leave_it(facts: Any, case: str, sampling: str):
    fact = facts(case)[0]
    counts, expected = np.array(fact["first"][sampling]), FIRST_TOKENS * np.array(fact["expected"][sampling])
    assert not counts[expected == 0].any()
    rare = expected < 5  # together, for the statistic to be nearly chi-square
    pairs = [*zip(counts[~rare], expected[~rare], strict=True), (counts[rare].sum(), expected[rare].sum())]
    freedom = len(pairs) - 2 + bool(expected[rare].sum())
    chi_square = sum((count - mean) ** 2 / mean for count, mean in pairs if mean)
    assert freedom >= 1
    assert chi_square < freedom + 6 * sqrt(2 * freedom)


def test_each_cut_leaves_less_than_the_others_let_through(facts: Any):
    """Else a distribution could be right without it."""
    whole, *cuts, _ = (facts("tied")[0]["expected"][name] for name in list(FIRSTS)[1:])
    assert all(0 < np.count_nonzero(cut) < np.count_nonzero(whole) for cut in cuts)


@pytest.mark.parametrize("case", CASES)
def test_rows_beyond_the_tokenizer_are_never_sampled(facts: Any, case: str):
    fact = facts(case)[0]
    assert fact["beyond"] > 0  # where the model finds one most likely
    assert all(token < KNOWN for responses in fact["theirs"].values() for r in responses for token in r.ids)


def test_a_response_ends_with_its_stop_token_or_at_the_limit(facts: Any):
    responses = facts("tied")[0]["theirs"]["whole"]
    ended, cut = [r for r in responses if not r.truncated], [r for r in responses if r.truncated]
    assert ended
    assert cut
    assert all(r.ids.index(STOP) == len(r.ids) - 1 == r.text_end for r in ended)
    assert all(STOP not in r.ids and len(r.ids) == NEW_TOKENS == r.text_end for r in cut)


def test_no_response_stops_before_min_new_tokens(facts: Any):
    fact, least = facts("tied")[0]["theirs"], SAMPLINGS["long"].min_new_tokens
    assert any(STOP in r.ids[:least] for r in fact["whole"])  # which the same seeds do without it
    assert not any(STOP in r.ids[:least] for r in fact["long"])


def test_each_response_is_told_when_it_is_there(facts: Any):
    fact = facts("tied")[0]
    assert fact["told"] == dict(enumerate(fact["theirs"]["whole"]))


def test_each_pipeline_stage_is_told_of_the_responses_that_it_makes(tmp_path: Path):
    (first, responses), (second, others) = run_distributed(told_by_stages, 2, save_models(tmp_path, tied=True))
    assert responses == others
    assert (sorted(first), sorted(second)) == (list(range(0, 64, 2)), list(range(1, 64, 2)))
    assert first | second == dict(enumerate(responses))


@pytest.mark.parametrize("case", CASES)
def test_weights_that_did_not_arrive_end_the_run(facts: Any, case: str):
    for fact in facts(case):
        assert "the weights did not reach the rollout engine" in fact["refusal"]
        assert "nats a token away from the training model's" in fact["refusal"]


@pytest.mark.parametrize("case", CASES)
def test_the_process_is_as_it_was(facts: Any, case: str):
    assert [fact["changed"] for fact in facts(case)] == [[]] * CASES[case][1]


def test_a_cache_that_is_full_starts_responses_anew_and_changes_none(tmp_path: Path):
    ((theirs, ours),) = run_distributed(crowded, 1, save_models(tmp_path, tied=True), 200)
    assert [len(r.ids) for r in theirs] == [200] * 24  # a second block each, when the five were given out as first ones
    assert [r.ids for r in theirs] == [r.ids for r in ours]


def test_a_bf16_students_log_probabilities_differ_by_rounding(tmp_path: Path):
    ((mean, largest),) = run_distributed(half_precision_gap, 1, save_models(tmp_path, tied=True))
    assert 0 < mean < 0.05
    assert largest < 0.5


def test_a_stop_text_ends_a_response_with_the_token_that_completes_it(tmp_path: Path):
    (found,) = run_distributed(stopped_by_text, 1, save_inputs(tmp_path) / "hf", "3")
    by_text = [(response, text, before) for response, text, before in found if "3" in text]
    assert len(by_text) > 10
    for response, text, before in by_text:
        assert "3" not in before
        assert "3" in text
        assert not response.truncated
        assert response.text_end == len(response.ids)
