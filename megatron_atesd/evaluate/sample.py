"""Responses to evaluate: one greedy and K sampled ones a problem, shared out over data parallelism so that no rank idles."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from megatron_atesd.config import RolloutConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.evaluate.responses import Answered, Key
from megatron_atesd.model.micro_batches import TokenIds
from megatron_atesd.parallel.groups import data_parallel_place
from megatron_atesd.records import Problem
from megatron_atesd.rollout.engine import Response, RolloutEngine
from megatron_atesd.rollout.loops import is_loop
from megatron_atesd.rollout.sampling import sequence_seed


def answer_problems(
    engine: RolloutEngine,
    renderer: PromptRenderer,
    problems: Sequence[Problem],
    prompts: Sequence[TokenIds],
    samples: int,
    config: RolloutConfig,
    seed: int,
    there: Mapping[Key, int],
    finished: Callable[[Answered], None],
    greedy: bool = True,
) -> None:
    """Generate this rank's share of the responses that are not `there` yet. Collective over the ranks of a model.

    prompts: ids of the student's prompt of each problem. there: tokens of each response that exists, equal on every rank.
    finished: called with each response as soon as it ends, on the ranks that the engine tells of it (RolloutEngine).
    greedy: whether each problem gets a greedy response besides.
    A response has the same seed whichever others are there. All of a kind, greedy or sampled, are one call of the engine.
    """
    costs = expected_costs([len(prompt) for prompt in prompts], there, config.max_new_tokens)
    rank, size = data_parallel_place()
    loads = [0.0] * size
    for sampling, kind in ((replace(config, temperature=0.0), range(-1, 0) if greedy else ()), (config, range(samples))):
        missing = [(p, s) for p in range(len(problems)) for s in kind if (p, s) not in there]
        mine = [missing[i] for i in share_out([costs[p] for p, _ in missing], loads)[rank]]

        def done(place: int, r: Response, mine: Sequence[Key] = mine) -> None:
            text = renderer.decode(r.ids[: r.text_end])
            finished(Answered(*mine[place], text, len(r.ids), r.truncated, r.truncated and is_loop(r.ids)))

        if mine:
            seeds = [sequence_seed("evaluate", seed, problems[p].id, s) for p, s in mine]
            engine.generate([prompts[p] for p, _ in mine], seeds, sampling, done)


def expected_costs(prompt_lengths: Sequence[int], there: Mapping[Key, int], max_new_tokens: int) -> list[float]:
    """Tokens to expect of prompt and response, of each problem: its mean so far, else the mean of all, else half of the limit."""
    of_problem: list[list[int]] = [[] for _ in prompt_lengths]
    for (problem, _), tokens in there.items():
        of_problem[problem].append(tokens)
    usual = fmean(there.values()) if there else max_new_tokens / 2
    return [length + (fmean(tokens) if tokens else usual) for length, tokens in zip(prompt_lengths, of_problem, strict=True)]


def share_out(costs: Sequence[float], loads: list[float]) -> list[list[int]]:
    """Places among `costs` of each rank, the most expensive first: each goes to the rank with the least so far (LPT).

    loads: what each rank has already; the costs are added to it. Equal costs go round the ranks, so that none has all samples of a hard
    problem. As the longest come first, what is left for the end is short, on a rank's context-parallel ranks too, which take turns.
    """
    shares: list[list[int]] = [[] for _ in loads]
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        rank = min(range(len(loads)), key=loads.__getitem__)
        loads[rank] += costs[place]
        shares[rank].append(place)
    return shares
