"""What gives away that a response's writer was shown a solution, and which words count as exploration."""

import pytest

from megatron_atesd.rollout.wording import exploration_words, speaks_of_a_given_solution

LEAKING = (
    "According to the reference solution, x = 2.",
    "The provided answer is 7, so we work towards it.",
    "Comparing with the provided final answer",
    "As the solution above shows, n = 3.",
    "So, by the given\nsolution, we get 3.",
    "This agrees with the verified solution.",
    "As stated in the solution, the sum is 5.",
    "The reference solution of this equation",
    "According to the solution to this problem,",
    "参考解析给出 5。",
    "The answer given above is 204.",
    "The solution I was shown uses induction.",
    "We follow the ground-truth answer.",
    "根据参考答案，x=2。",
    "与标准答案一致。",
    "按照上述解答，我们得到 3。",
    "题目提供的解法先求导。",
)
OWN = (
    "The solution is x = 2. The answer is 7.",
    "Check the provided answer choices one by one.",
    "The solution set is given by x > 3.",
    "In the reference frame of the train, the answer is 4.",
    "Let us verify the answer: 3 + 4 = 7.",
    "The given equation has one solution.",
    "So the final answer is \\boxed{204}.",
    "So the verified answer is 5.",
    "The position x(t), as given by the solution of the differential equation,",
    "According to the solutions of the quadratic, r = 2.",
    "According to the answer to part (a), n = 4.",
    "Adding 10 ml of water to the given solution of acid",
    "答案是 5。",
    "根据解析几何，这条直线的斜率是 2。",
    "所给解析式为 y = 2x。",
    "根据题意，这个方程有两个解。",
)


@pytest.mark.parametrize("response", LEAKING)
def test_a_response_that_speaks_of_what_it_was_shown_leaks(response: str) -> None:
    assert speaks_of_a_given_solution(response, lambda: "How many apples are there?")


@pytest.mark.parametrize("response", OWN)
def test_a_response_that_speaks_of_its_own_work_does_not(response: str) -> None:
    assert not speaks_of_a_given_solution(response, lambda: "")


def test_a_phrase_of_the_prompt_does_not_count() -> None:
    prompt = "Find the mistake in the  Given\nSolution: 1 + 1 = 3."
    assert not speaks_of_a_given_solution("In the given solution, 1 + 1 is wrong.", lambda: prompt)
    assert speaks_of_a_given_solution("In the given solution, which is the reference answer, 1 + 1 is wrong.", lambda: prompt)


@pytest.mark.parametrize(
    ("response", "words"),
    [
        ("Wait, let me check. However, perhaps another way is shorter. Hmm.", 6),
        ("3 + 4 = 7, so the answer is 7.", 0),
        ("The waiter checks another table. Howevers.", 0),
        ("等等，我再检查一遍。不过，也许换个思路更好。", 5),
        ("所以答案是 5。", 0),
    ],
)
def test_words_of_checking_and_doubting_are_counted(response: str, words: int) -> None:
    assert exploration_words(response) == words
