"""Before the first update: how hard each problem is to the start model, and so its difficulty bin."""

from collections.abc import Callable, Sequence
from statistics import fmean

from megatron_atesd.distill.likelihood import text_nlls
from megatron_atesd.parallel.groups import from_rank_0
from megatron_atesd.parallel.session import start_minutes
from megatron_atesd.records import Problem
from megatron_atesd.train.difficulty import by_key, field_values
from megatron_atesd.train.heartbeat import Heartbeat
from megatron_atesd.train.training_run import TrainingRun


def sort_problems(run: TrainingRun, tell: Callable[[str], None], heartbeat: Heartbeat) -> None:
    """Measure and sort the problems that the run uses, unless a checkpoint knew the bins; the run then probes by bin. Collective.

    With one bin there is nothing to do. tell: is told what is being done, and the bins. Raises DataError: see `DifficultyBins.sort`.
    """
    exposure = run.config.exposure
    if exposure.bins == 1:
        return
    if not run.bins.number:
        problems, probe = run.sampler.used(run.config.run.updates), run.probe_problems
        heartbeat.enter("the difficulty of the problems", start_minutes(run.config.parallel))
        if exposure.difficulty == "field":
            # Even edges are of the whole file, so that they do not depend on the length of the training.
            problems = run.bins.files[0]
            values, probe_values = (field_values(p, exposure.difficulty_field) for p in (problems, probe))
        elif exposure.difficulty == "nll":
            tell(f"difficulty: the start model reads {len(problems) + len(probe)} reference solutions")
            values, probe_values = (_mean_nlls(run, p) for p in (problems, probe))
        else:
            values, probe_values = _wrong_shares(run, problems, tell, heartbeat), _wrong_own(run)
        # Sums that differed in the last bit between ranks would part problems otherwise, and show them other prompts.
        values, probe_values = from_rank_0((values, probe_values))
        run.bins.sort(exposure, by_key(problems, values), by_key(probe, probe_values))
    run.probe_by_bin()
    tell(run.bins.account())


def _mean_nlls(run: TrainingRun, problems: Sequence[Problem]) -> list[float]:
    """Mean NLL a token of each reference, nats."""
    run.optimization.weights_ready()
    pairs = [(run.renderer.student(problem), run.renderer.reference(problem)) for problem in problems]
    sums = text_nlls(run.model, pairs, run.config.parallel.micro_batch_tokens)
    return [total / len(reference) for total, (_, reference) in zip(sums, pairs, strict=True)]


def _wrong_shares(run: TrainingRun, problems: Sequence[Problem], tell: Callable[[str], None], heartbeat: Heartbeat) -> list[float]:
    """Share of each problem's responses that are wrong; one that was cut at the limit is."""
    rights: list[list[bool]] = []
    samples = run.config.exposure.difficulty_samples
    for sample in range(samples):
        heartbeat.enter(f"sample {sample + 1} of the difficulty of the problems", start_minutes(run.config.parallel))
        tell(f"difficulty: response {sample + 1} of {samples} of the start model to each of {len(problems)} training problems")
        rollouts = run.shared_rollout(problems, first=-len(problems) * (sample + 1))
        rights.append(run.right_and_whole(rollouts))
    return [1 - fmean(right) for right in zip(*rights, strict=True)]


def _wrong_own(run: TrainingRun) -> list[float]:
    """The same of the probe problems, from the start model's own responses."""
    right, problems = run.graded_own().right, len(run.probe_problems)
    return [1 - fmean(right[i::problems]) for i in range(problems)]
