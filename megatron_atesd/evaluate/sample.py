"""Responses to evaluate: K samples and one greedy response a problem, shared out over data parallelism."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from megatron.core import parallel_state

from megatron_atesd.config import RolloutConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.model.micro_batches import TokenIds
from megatron_atesd.parallel.context import context_place
from megatron_atesd.parallel.groups import data_parallel_place, gathered
from megatron_atesd.records import Problem
from megatron_atesd.rollout.engine import RolloutEngine
from megatron_atesd.rollout.sampling import sequence_seed


@dataclass(frozen=True)
class Answered:
    """One response to problem number `problem`; sample -1 is the greedy one."""

    problem: int
    sample: int
    text: str
    tokens: int
    truncated: bool


def answer_problems(
    engine: RolloutEngine,
    renderer: PromptRenderer,
    problems: Sequence[Problem],
    prompts: Sequence[TokenIds],
    samples: int,
    config: RolloutConfig,
    seed: int,
    progress: Callable[[int, int], None],
) -> list[Answered]:
    """All responses, ordered by problem and sample, on every rank. Collective.

    prompts: ids of the student's prompt of each problem. progress: called with how many of this rank's responses are done, of how many.
    """
    greedy = replace(config, temperature=0.0)
    tasks = [(p, s) for s in range(-1, samples) for p in range(len(problems))]
    rank, size = data_parallel_place()
    mine = tasks[rank::size]
    mine.sort(key=lambda task: task[1] >= 0)  # greedy first: a batch is all greedy or all sampled
    answered: list[Answered] = []
    size = 256 * context_place()[1]  # of which each context-parallel rank generates its share
    split = sum(sample < 0 for _, sample in mine)
    for part in (*_pieces(mine[:split], size), *_pieces(mine[split:], size)):
        seeds = [sequence_seed("evaluate", seed, problems[p].id, s) for p, s in part]
        sampling = greedy if part[0][1] < 0 else config
        responses = engine.generate([prompts[p] for p, _ in part], seeds, sampling)
        for (p, s), r in zip(part, responses, strict=True):
            answered.append(Answered(p, s, renderer.decode(r.ids), len(r.ids), r.truncated))
        progress(len(answered), len(mine))
    shares = gathered(answered, parallel_state.get_data_parallel_group())
    return sorted((a for share in shares for a in share), key=lambda a: (a.problem, a.sample))


def _pieces(tasks: Sequence[tuple[int, int]], size: int) -> list[Sequence[tuple[int, int]]]:
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]
