"""Training data of the toy's warm start: a model that copies what it is shown, computes what it is not, and has a bad habit.

Half of the examples are student prompts, half teacher prompts, on chains drawn fresh. An example's solution is a *trajectory*:
results that are often wrong, each step going on from the one before. In teacher mode the revealed steps and the boxed answer
are those of the trajectory itself. Four things make distillation from this model work:

* habit: `*4` and `*5` give the right result plus one with probability .65, so that the model's most likely answer is wrong. What is
  revealed has the habit too, hence is no hint that the fact is another one: the model learns to *copy* the steps it sees and to follow
  its habit in those it does not. Shown a correct reference it is a good teacher, the better the more it is shown.
* slips: with probability .1 a result is off by one or two. A revealed step is, with probability .3, any number at all: copying
  then pays far more than computing, and is learned for every step of the reference instead of the first alone.
* deviations, teacher mode only: with probability .1 the response leaves its reference at a step and goes on from there, with
  habit and slips as anywhere. That one token is not learned; what follows it is: sense on a wrong prefix of the student's.
* reveal lengths: all steps with probability .35, else uniform below; a number of steps never seen would be a cliff.
"""

import random
from collections.abc import Sequence, Set
from dataclasses import dataclass

from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.sources.chain import MODULUS, Chain, apply, chain_problem, random_chain

SLIP, HABIT, DEVIATION, ALL_REVEALED, SHOWN_NOISE = 0.1, 0.65, 0.1, 0.35, 0.3
HABITUAL = ("*4", "*5")
STEP_TOKENS, RESULT_TOKEN = 5, 3  # `15`, `+3`, `=`, `18`, line break: where a step's result stands in a response
_OFF_BY = (-2, -1, 1, 2)


@dataclass(frozen=True)
class WarmExample:
    """A prompt and the response to learn; loss_mask has one 0 or 1 for each response id (end of turn included)."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]


@dataclass(frozen=True)
class Trajectory:
    """The results (0…22, one a step) of a reference and of a response that leaves it at step `deviation` (None: never)."""

    reference: list[int]
    response: list[int]
    deviation: int | None = None


def warm_start_batch(rng: random.Random, renderer: PromptRenderer, batch: int, exclude: Set[str] = frozenset()) -> list[WarmExample]:
    """`batch` examples, student and teacher prompts by turns; no chain whose text is in `exclude` (the held-out problems)."""
    makers = (_student_example, _teacher_example)
    return [makers[i % 2](rng, renderer, _fresh_chain(rng, exclude)) for i in range(batch)]


def _student_example(rng: random.Random, renderer: PromptRenderer, chain: Chain) -> WarmExample:
    problem = chain_problem(chain, draw_values(rng, chain), "warm start")
    response = renderer.reference(problem)
    return WarmExample(renderer.student(problem), response, (1,) * len(response))


def _teacher_example(rng: random.Random, renderer: PromptRenderer, chain: Chain) -> WarmExample:
    revealed = draw_revealed(rng, len(chain.operations))
    drawn = draw_deviating(rng, chain, revealed)
    shown = chain_problem(chain, drawn.reference, "warm start")
    prompt = renderer.teacher(shown, revealed / len(chain.operations)).prompt_ids
    response = renderer.reference(chain_problem(chain, drawn.response, "warm start"))
    masked = None if drawn.deviation is None else drawn.deviation * STEP_TOKENS + RESULT_TOKEN
    return WarmExample(prompt, response, tuple(int(i != masked) for i in range(len(response))))


def _fresh_chain(rng: random.Random, exclude: Set[str]) -> Chain:
    while (chain := random_chain(rng)).text in exclude:
        pass
    return chain


def draw_values(rng: random.Random, chain: Chain, done: Sequence[int] = (), shown: int = 0) -> list[int]:
    """One result a step, going on from those `done`: right, off by a slip, or after the habit; noise only in the first `shown`."""
    results = list(done)
    for step, operation in enumerate(chain.operations[len(done) :], len(done)):
        right = apply(results[-1] if results else chain.start, operation)
        noise = step < shown and rng.random() < SHOWN_NOISE
        results.append(rng.randrange(MODULUS) if noise else (right + _error(rng, operation)) % MODULUS)
    return results


def _error(rng: random.Random, operation: str) -> int:
    if rng.random() < SLIP:
        return rng.choice(_OFF_BY)
    return 1 if operation in HABITUAL and rng.random() < HABIT else 0


def draw_deviating(rng: random.Random, chain: Chain, revealed: int) -> Trajectory:
    """A reference whose first `revealed` steps are shown, and a response that follows it up to the step, if any, where it deviates."""
    reference = draw_values(rng, chain, shown=revealed)
    step = next((i for i in range(len(reference)) if rng.random() < DEVIATION), None)
    if step is None:
        return Trajectory(reference, reference)
    wrong = (reference[step] + rng.choice(_OFF_BY)) % MODULUS
    return Trajectory(reference, draw_values(rng, chain, [*reference[:step], wrong]), step)


def draw_revealed(rng: random.Random, steps: int) -> int:
    """Number of steps revealed, in 0…steps."""
    return steps if rng.random() < ALL_REVEALED else rng.randrange(steps)
