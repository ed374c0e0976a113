"""The start model's own responses to the probe problems: which are right, and how much each counts in a likelihood."""

import atexit
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.distill.likelihood import ScoredText
from megatron_atesd.errors import DataError
from megatron_atesd.evaluate.grading import Grader
from megatron_atesd.parallel.groups import from_rank_0, is_main
from megatron_atesd.records import Problem, Rollout

KEPT = 4  # distinct right ones, and as many wrong ones, of a problem: more costs more at each measurement
GRADING_WORKERS, GRADING_SECONDS = 2, 5.0  # as in tools/evaluate.py

Weighted = tuple[Rollout, float]


def graded(rollouts: Sequence[Rollout], renderer: PromptRenderer) -> list[bool]:
    """Whether each response's last boxed answer means the problem's, decided on rank 0 as evaluation does; equal rollouts everywhere.

    Most answers are decided at once. The first that needs sympy starts two processes, about a second, which end with the job.
    Collective.
    """
    return from_rank_0(
        _grade([(renderer.opening + renderer.decode(r.response_ids), r.problem.answer) for r in rollouts]) if is_main() else []
    )


def _grade(items: Sequence[tuple[str, str]]) -> list[bool]:
    return job_grader().grade(items)


@cache
def job_grader() -> Grader:
    """The one Grader of this process; its processes start with the first answer that needs one, and end with the job."""
    grader = Grader(GRADING_WORKERS, GRADING_SECONDS)
    atexit.register(grader.close)
    return grader


@dataclass
class OwnResponses:
    """Gathered once, by the start's weights, and kept in checkpoints: the student learns, these stay what it was able to do.

    rollouts: sample after sample, of all probe problems each. right: of each; empty where nothing needs them graded. One that was cut at
    the limit is not right, whatever its box says: its likelihood would reward not to stop.
    """

    rollouts: list[Rollout] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    def of_problems(self, problems: Sequence[Problem]) -> "OwnResponses":
        """Those to some of the probe problems."""
        wanted = {problem.id for problem in problems}
        kept = [place for place, rollout in enumerate(self.rollouts) if rollout.problem.id in wanted]
        return OwnResponses([self.rollouts[place] for place in kept], [self.right[place] for place in kept] if self.right else [])

    def correct(self) -> list[Weighted]:
        """The right responses, weighted so that Σ weight · NLL is a mean in nats a token, see `weighted`."""
        return weighted([r for r, right in zip(self.rollouts, self.right, strict=True) if right])

    def wrong(self) -> list[Weighted]:
        """The wrong responses to the problems that also have a right one, weighted likewise."""
        solved = {rollout.problem.id for rollout, _ in self.correct()}
        pairs = zip(self.rollouts, self.right, strict=True)
        return weighted([r for r, right in pairs if not right and r.problem.id in solved])

    def account(self, problems: int) -> str:
        """How many of the `problems` probe problems have a right response. Raises DataError when none has: there is nothing to measure."""
        solved, samples = len({rollout.problem.id for rollout, _ in self.correct()}), len(self.rollouts) // problems
        if not solved:
            raise DataError(
                f"none of the {problems} probe problems has a correct response among {samples} of the start model, so its own correct "
                "responses measure nothing: raise exposure.probe_samples, give easier problems as data.probe, or choose another "
                "exposure.progress (and exposure.grounding)"
            )
        rest = "" if solved == problems else "; the others are left out"
        return f"{solved} of {problems} probe problems have a correct response among {samples} of the start model{rest}"

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint's part `run`."""
        return {"probe_responses": [(r.response_ids, r.truncated) for r in self.rollouts], "probe_right": list(self.right)}

    def load_state_dict(self, run: Mapping[str, Any], problems: Sequence[Problem], renderer: PromptRenderer) -> None:
        """Take them from a checkpoint's part `run`; one of an earlier version holds a sample a problem, ungraded, or none."""
        self.right = list(run.get("probe_right", []))
        prompts = [renderer.student(problem) for problem in problems]
        self.rollouts = [
            Rollout(problems[i % len(problems)], prompts[i % len(problems)], tuple(ids), truncated)
            for i, (ids, truncated) in enumerate(run["probe_responses"])
        ]


def weighted(rollouts: Sequence[Rollout], kept: int = KEPT) -> list[Weighted]:
    """Distinct responses with weights under which Σ weight · NLL is the mean over problems of the mean over response tokens.

    Each problem counts alike, however many of its responses there are. Within one, its `kept` most frequent responses count as often as
    they were drawn; of equally frequent ones the earlier go first.
    """
    drawn: dict[str, Counter[tuple[int, ...]]] = {}
    first: dict[tuple[str, tuple[int, ...]], Rollout] = {}
    for rollout in rollouts:
        ids = tuple(rollout.response_ids)
        drawn.setdefault(rollout.problem.id, Counter())[ids] += 1
        first.setdefault((rollout.problem.id, ids), rollout)
    result: list[Weighted] = []
    for problem, counter in drawn.items():
        often = counter.most_common(kept)
        tokens = sum(count * len(ids) for ids, count in often)
        result += [(first[problem, ids], count / (tokens * len(drawn))) for ids, count in often]
    return result


def student_texts(responses: Sequence[Weighted], factor: float = 1.0) -> list[ScoredText]:
    """The responses after the student's prompt, their weights multiplied by `factor`."""
    return [ScoredText(r.prompt_ids, r.response_ids, factor * weight) for r, weight in responses]


def margin_texts(own: OwnResponses, wrong_weight: float) -> list[ScoredText]:
    """Texts whose weighted NLL is probe_margin: the mean of the correct responses less `wrong_weight` times that of the wrong ones."""
    return student_texts(own.correct()) + (student_texts(own.wrong(), -wrong_weight) if wrong_weight else [])
