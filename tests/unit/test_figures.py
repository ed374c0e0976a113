"""All figures of an evaluation from its responses: which are samples, and what counts as an answer."""

from megatron_atesd.evaluate.figures import figures_of
from megatron_atesd.evaluate.responses import Answered
from megatron_atesd.records import Problem

PROBLEMS = [Problem("a", "1+1", r"\boxed{2}", "2"), Problem("b", "2+2", r"\boxed{4}", "4")]
GREEDY = [Answered(p, -1, r"\boxed{0}", 3, False, False) for p in (0, 1)]
SAMPLES = [
    Answered(0, 0, r"so </think> \boxed{2}", 5, False, False),
    Answered(0, 1, r"\boxed{2} is what I think", 9, True, True),
    Answered(1, 0, r"</think> \boxed{5}", 4, False, False),
    Answered(1, 1, r"</think> \boxed{5}", 4, False, False),
]


def same(pairs: object) -> list[bool]:
    raise AssertionError("nothing to compare by meaning")


def test_a_box_in_thinking_that_the_prompt_has_opened_is_no_answer():
    right = [True, False, False, False]
    assert figures_of(PROBLEMS, SAMPLES, right, same)["with_answer"] == 1.0
    assert figures_of(PROBLEMS, SAMPLES, right, same, opening="<think>")["with_answer"] == 0.75


def test_greedy_responses_are_apart_from_the_samples():
    answered = [GREEDY[0], *SAMPLES[:2], GREEDY[1], *SAMPLES[2:]]
    figures = figures_of(PROBLEMS, answered, [False, True, True, True, False, False], same)
    assert (figures["greedy"], figures["average_at_k"], figures["samples"], figures["mean_tokens"]) == (0.5, 0.5, 2, 5.5)
