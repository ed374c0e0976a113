"""Progress signals ℓ, lower is better: what each measures, on which problems, how often and at what cost; one class each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Protocol

from megatron_atesd.config import ExposureConfig
from megatron_atesd.data.notice import warn_once
from megatron_atesd.distill.likelihood import ScoredText
from megatron_atesd.distill.step import StepResult
from megatron_atesd.model.micro_batches import Pair
from megatron_atesd.records import Rollout
from megatron_atesd.train.own_responses import OwnResponses, margin_texts, student_texts

Measured = tuple[float | None, dict[str, float]]  # ℓ (None: not known of this update), and metrics beside it
Score = Callable[[Sequence[ScoredText]], float]  # weighted_nll of the student


@dataclass(frozen=True)
class Finished:
    """A finished update as the signals see it.

    update: its number (0: before the first). result: of its step, None at 0. rollouts: this data-parallel rank's; none at 0.
    """

    update: int
    result: StepResult | None = None
    rollouts: Sequence[Rollout] = ()


class ProgressSignal(Protocol):
    """What is measured after an update. Collective over all ranks, equal on all of them.

    free: known after every update without a pass of its own. Other signals are measured every `exposure.probe_every` updates.
    """

    free: bool

    def measure(self, finished: Finished) -> Measured:
        """ℓ now, and metrics by name."""
        ...


class GradientSignal(ProgressSignal, Protocol):
    """A signal whose gradient is that of a likelihood: ∇ℓ = ∇ Σ weight · NLL of some texts."""

    def texts(self, rollouts: Sequence[Rollout]) -> list[ScoredText]:
        """The texts, the same on every rank; rollouts: this data-parallel rank's of the update that begins. Collective over all ranks."""
        ...


@dataclass
class ReferenceNLL:
    """probe_nll: the mean NLL a token of the probe problems' reference solutions.

    Costs a forward pass over as many sequences as there are probe problems. It can fall fastest at the worst exposure: a student may
    learn to write as the references do, and solve less.
    """

    pairs: Sequence[Pair]  # the student's prompt and the reference, of each problem
    mean: Callable[[Sequence[Pair]], float]  # mean_nll of the student
    free: bool = False

    def texts(self, rollouts: Sequence[Rollout]) -> list[ScoredText]:
        """See GradientSignal: each token of the references counts alike."""
        share = 1 / sum(len(reference) for _, reference in self.pairs)
        return [ScoredText(prompt, reference, share) for prompt, reference in self.pairs]

    def measure(self, finished: Finished) -> Measured:
        """See ProgressSignal."""
        return self.mean(self.pairs), {}


@dataclass
class OwnNLL:
    """probe_own (wrong_weight 0) and probe_margin: the NLL of the start model's own responses to the probe problems.

    The mean of its correct responses, less wrong_weight times the mean of its wrong ones, nats a token. Problems without a correct
    response are left out. Costs `exposure.probe_samples` responses a problem at the start, and forward passes over at most
    `own_responses.KEPT` correct ones a problem (with a wrong_weight as many wrong ones) at each measurement. It is averse to every style
    that is not the student's; the wrong ones take some of that away.
    """

    own: OwnResponses
    score: Score
    wrong_weight: float = 0.0
    free: bool = False

    def texts(self, rollouts: Sequence[Rollout]) -> list[ScoredText]:
        """See GradientSignal: the own responses."""
        return margin_texts(self.own, self.wrong_weight)

    def measure(self, finished: Finished) -> Measured:
        """See ProgressSignal; metrics are the two means."""
        own = self.score(student_texts(self.own.correct()))
        wrong = student_texts(self.own.wrong()) if self.wrong_weight else []
        if not wrong:
            return own, {"probe/own_nll": own}
        nll = self.score(wrong)
        return own - self.wrong_weight * nll, {"probe/own_nll": own, "probe/wrong_nll": nll}


@dataclass
class ProbeAccuracy:
    """probe_accuracy: less the share of the probe problems that a fresh response answers, graded by meaning.

    Costs a response a problem at each measurement, drawn anew; with N problems its noise is up to ½/√N.
    """

    draw: Callable[[int], list[Rollout]]  # after so many updates: a response to each probe problem, of all ranks
    grade: Callable[[Sequence[Rollout]], list[bool]]
    free: bool = False

    def measure(self, finished: Finished) -> Measured:
        """See ProgressSignal."""
        accuracy = fmean(self.grade(self.draw(finished.update)))
        return -accuracy, {"probe/accuracy": accuracy}


@dataclass
class TrainAccuracy:
    """train_accuracy: less the share of the update's own rollouts that are right, graded by meaning.

    No pass; grading alone. Other problems each time, so its noise is that of a sample of data.batch. Its gradient is the policy gradient
    of the expected accuracy (REINFORCE, with the mean of the batch as baseline), from the very rollouts that are there.
    """

    gather: Callable[[Sequence[Rollout]], list[Rollout]]  # of all data-parallel ranks
    grade: Callable[[Sequence[Rollout]], list[bool]]
    free: bool = True

    def texts(self, rollouts: Sequence[Rollout]) -> list[ScoredText]:
        """See GradientSignal: each response that ended by its advantage, which is 0 for all where all are right, or none is.

        One that was cut at the limit might still have been right: it counts neither way.
        """
        ended = [rollout for rollout in self.gather(rollouts) if not rollout.truncated]
        rights = self.grade(ended)
        mean = fmean(rights or [0.0])
        return [ScoredText(r.prompt_ids, r.response_ids, (right - mean) / len(ended)) for r, right in zip(ended, rights, strict=True)]

    def measure(self, finished: Finished) -> Measured:
        """See ProgressSignal; nothing at the start, which has no rollouts, nor of a difficulty bin without one."""
        rights = self.grade(self.gather(finished.rollouts)) if finished.result else []
        return (-fmean(rights) if rights else None), {}


@dataclass
class ProbeKL:
    """probe_kl: KL to the teacher at one fixed exposure, on the start model's responses to the probe problems (one each).

    Costs a teacher's and a student's forward pass over them.
    """

    own: OwnResponses
    kl: Callable[[Sequence[Rollout]], float]
    problems: int  # of the probe; the last so many responses are one of each
    free: bool = False

    def measure(self, finished: Finished) -> Measured:
        """See ProgressSignal."""
        return self.kl(self.own.rollouts[-self.problems :]), {}


@dataclass
class TrainKL:
    """train_kl: KL to the teacher of the update just made. Free, but it depends on α itself: biased towards little exposure."""

    free: bool = field(default=True)

    def measure(self, finished: Finished) -> Measured:
        """See ProgressSignal; nothing at the start, which has no rollouts."""
        return (finished.result.kl if finished.result else None), {}


def warn_of_bias(exposure: ExposureConfig) -> None:
    """Say once what a controller that follows probe_nll may be led to."""
    if exposure.mode in ("learned", "aligned", "posterior") and exposure.progress == "probe_nll":
        warn_once(
            "exposure.progress is probe_nll, the NLL of reference solutions: where references are written otherwise than the student "
            "can follow, it falls fastest at the worst exposure; train_accuracy, probe_margin and probe_accuracy measure what it solves"
        )
