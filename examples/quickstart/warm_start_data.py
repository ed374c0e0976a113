"""Training data of the toy's warm start: a model that copies what it is shown, computes what it is not, and has a bad habit.

Half of the examples are student prompts, half teacher prompts, on chains drawn fresh. An example's solution is a *trajectory*: lines
of one operation or, tersely, of two, whose results are often wrong, each going on from the one before. In teacher mode the revealed
lines and the boxed answer are those of the trajectory itself. Six things make distillation from this model work:

* habit: `*4` and `*5` give the right result plus one with probability .65, so that the model's most likely answer is wrong. What is
  revealed has the habit too, hence is no hint that the fact is another one: the model learns to *copy* the lines it sees and to follow
  its habit in those it does not. Shown a correct reference it is a good teacher, the better the more it is shown.
* slips: with probability .1 a line's result is off by one or two. A revealed line's is, with probability .3, any number at all: copying
  then pays far more than computing, and is learned for every line of the reference instead of the first alone.
* styles: of its own accord the model writes a line tersely with probability .1. Half of the references are all one-operation, in the
  other half each line is terse with probability .5. A revealed line is written as the reference does.
* other styles, teacher mode only: with probability .1 a revealed line is written in the style that it does not have in the reference.
  The token that decides it is not learned; what follows is, up to where a line of the reference begins again.
* deviations, teacher mode only: with probability .1 the response leaves its reference at a line's result and goes on from there, with
  habit and slips as anywhere. That one token is not learned; what follows it is: sense on a wrong prefix of the student's.
* reveal lengths: all lines with probability .35, else uniform below; a number of lines never seen would be a cliff.
"""

import random
from collections.abc import Sequence, Set
from dataclasses import dataclass

from examples.quickstart.warm_start_lines import OFF_BY, Reference, draw_line, draw_own_line, draw_own_lines, draw_reference
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.sources.chain import MODULUS, Chain, Line, chain_problem, random_chain

OTHER_STYLE, DEVIATION = 0.1, 0.1
BOX_TOKENS = 4  # `\boxed{`, `18`, `}`, end of turn


@dataclass(frozen=True)
class WarmExample:
    """A prompt and the response to learn; loss_mask has one 0 or 1 for each response id (end of turn included)."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """A line of a response, and in what it departs from its reference on purpose."""

    line: Line
    other_style: bool = False
    deviates: bool = False

    def loss_mask(self) -> list[int]:
        """0 for a token that departs, else 1: `15`, `+3`, perhaps a second operation, `=`, `18`, line break."""
        mask = [1] * (len(self.line.operations) + 4)
        if self.other_style:
            mask[2] = 0  # a second operation or `=`: with this token the line is terse or not
        if self.deviates:
            mask[-2] = 0
        return mask


def warm_start_batch(rng: random.Random, renderer: PromptRenderer, batch: int, exclude: Set[str] = frozenset()) -> list[WarmExample]:
    """`batch` examples, student and teacher prompts by turns; no chain whose text is in `exclude` (the held-out problems)."""
    makers = (_student_example, _teacher_example)
    return [makers[i % 2](rng, renderer, _fresh_chain(rng, exclude)) for i in range(batch)]


def _student_example(rng: random.Random, renderer: PromptRenderer, chain: Chain) -> WarmExample:
    problem = chain_problem(chain, draw_own_lines(rng, chain.start, chain.operations), "warm start")
    response = renderer.reference(problem)
    return WarmExample(renderer.student(problem), response, (1,) * len(response))


def _teacher_example(rng: random.Random, renderer: PromptRenderer, chain: Chain) -> WarmExample:
    reference = draw_reference(rng, chain)
    written = draw_response(rng, chain, reference)
    shown = chain_problem(chain, reference.lines, "warm start")
    prompt = renderer.teacher(shown, reference.revealed / len(reference.lines)).prompt_ids
    response = renderer.reference(chain_problem(chain, [w.line for w in written], "warm start"))
    mask = [learned for w in written for learned in w.loss_mask()] + [1] * BOX_TOKENS
    return WarmExample(prompt, response, tuple(mask))


def _fresh_chain(rng: random.Random, exclude: Set[str]) -> Chain:
    while (chain := random_chain(rng)).text in exclude:
        pass
    return chain


def draw_response(rng: random.Random, chain: Chain, reference: Reference) -> list[Written]:
    """What a teacher writes that sees the reference in part: the same, but for other styles, deviations and what comes of them."""
    begins = {sum(len(line.operations) for line in reference.lines[:i]): i for i in range(len(reference.lines))}
    written: list[Written] = []
    value, left = chain.start, chain.operations
    while left:
        place = begins.get(len(chain.operations) - len(left))
        written.append(_next_line(rng, chain.start, value, left, reference, place))
        value, left = written[-1].line.result, left[len(written[-1].line.operations) :]
    return written


def _next_line(rng: random.Random, start: int, value: int, left: Sequence[str], reference: Reference, place: int | None) -> Written:
    """The line after the result `value`, with operations `left`, where the reference line number `place` begins (None: none does).

    It copies that line if it goes on from the same value. From another value it keeps the style of a line in sight.
    """
    if place is None:
        return Written(draw_own_line(rng, value, left))
    line, in_sight = reference.lines[place], place < reference.revealed
    if in_sight and len(left) > 1 and rng.random() < OTHER_STYLE:
        return Written(draw_line(rng, value, left[: 3 - len(line.operations)]), other_style=True)
    if value == (reference.lines[place - 1].result if place else start):
        deviates = rng.random() < DEVIATION
        off = rng.choice(OFF_BY) if deviates else 0
        return Written(Line(line.operations, (line.result + off) % MODULUS), deviates=deviates)
    return Written(draw_line(rng, value, line.operations) if in_sight else draw_own_line(rng, value, left))
