"""A training run put together: every part built once from the configuration, and its whole state for a checkpoint."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_atesd.checkpoint.random_states import restore_rng, rng_states
from megatron_atesd.checkpoint.reading import read_folder
from megatron_atesd.config import TrainConfig
from megatron_atesd.config.signals import needs_own, probe_interval
from megatron_atesd.data.boxes import final_boxed
from megatron_atesd.data.notice import warn_once
from megatron_atesd.data.sampler import ProblemSampler, fingerprint
from megatron_atesd.data.teacher_view import TeacherView
from megatron_atesd.distill.alignment import add_progress_gradient, alignment_scores
from megatron_atesd.distill.likelihood import ScoredText, mean_nll, weighted_nll
from megatron_atesd.distill.readings import Example, teacher_passes
from megatron_atesd.distill.step import divergence_of, example_losses, measure_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.exposure.aligned import exposure_grid
from megatron_atesd.exposure.bins import bin_metric
from megatron_atesd.exposure.service import ExposureService
from megatron_atesd.model.micro_batches import Pair
from megatron_atesd.model.scaling_history import load_scaling_history, scaling_history
from megatron_atesd.model.trained import load_trained_state, trained_prefix, trained_state
from megatron_atesd.parallel.groups import data_parallel_place, from_rank_0, gathered, is_main
from megatron_atesd.records import Exposure, Problem, Rollout, TeacherContext, UpdateStats
from megatron_atesd.rollout.engine import RolloutEngine
from megatron_atesd.rollout.engines import build_engine
from megatron_atesd.rollout.sampling import sequence_seed
from megatron_atesd.train.checks import TrainingInputs
from megatron_atesd.train.difficulty import DifficultyBins
from megatron_atesd.train.evaluation_files import with_room
from megatron_atesd.train.finite import Skipped, check_probe, check_weights
from megatron_atesd.train.lengths import check_lengths
from megatron_atesd.train.logprob_gap import logprob_gap
from megatron_atesd.train.optimizer import build_optimization
from megatron_atesd.train.own_responses import OwnResponses, graded
from megatron_atesd.train.probe_set import ProbeSet
from megatron_atesd.train.progress import (
    Finished,
    GradientSignal,
    OwnNLL,
    ProbeAccuracy,
    ProbeKL,
    ProgressSignal,
    ReferenceNLL,
    TrainAccuracy,
    TrainKL,
    warn_of_bias,
)
from megatron_atesd.train.refresh import GainGate
from megatron_atesd.train.student import start_student
from megatron_atesd.train.trial_step import trial_step


class TrainingRun:
    """Data, model, teacher, optimizer and exposure service of one run; create it inside `parallel_session`."""

    def __init__(self, config: TrainConfig, inputs: TrainingInputs, goes_on: bool = False) -> None:
        """goes_on: a checkpoint will be loaded, which has the adapters, if there are any."""
        self.config, self.probe_problems = config, inputs.probe_problems
        self.hf_folder, self.renderer = inputs.model.hf_folder, inputs.model.renderer
        self.teacher_view = TeacherView(self.renderer, config.exposure, config.run.seed, inputs.problems, inputs.probe_problems)
        check_lengths(config, inputs, self.teacher_view, dist.get_rank(), dist.get_world_size())
        self.sampler = ProblemSampler(inputs.problems, config.data.batch, config.run.seed, *data_parallel_place())
        self.model, self.adapters = start_student(config, inputs, goes_on)
        self.engine: RolloutEngine = build_engine(with_room(config), self.model, self.renderer, self.hf_folder)
        distill = config.distill
        self.teacher = Teacher(
            self.model,
            distill.teacher,
            distill.ema_decay,
            distill.teacher_offload,
            config.precision.teacher,
            new_adapters=not config.lora.start,
        )
        self.gate = GainGate(distill.refresh_every)
        self.optimization = build_optimization(self.model, config.optimizer, config.ddp, config.schedule, config.run.updates)
        self.service = ExposureService(config.exposure, config.run.updates, config.run.seed)
        self.divergence = divergence_of(config)
        self.own = OwnResponses()
        self.references = self._reference_nll(self.probe_problems)
        self.progress = self._progress_signal(self.own, self.references, lambda rollouts: list(rollouts))
        self.bins = DifficultyBins((inputs.problems, inputs.probe_problems))
        self.probe_sets: list[ProbeSet] = []  # of each difficulty bin, where there are several and problems are sorted
        self._drawn: list[Rollout] | None = None  # fresh responses to the probe problems, for one probe by bin
        self.skipped = Skipped(Path(config.run.dir) / "skipped", config.run.max_skipped)

    def rollout(self, problems: Sequence[Problem], first: int) -> list[Rollout]:
        """One student response a problem, whose seed is made of run seed, place in the stream of problems, and problem.

        first: place of the first one. Places below 0 are no problem's of the stream. Collective over all ranks.
        """
        self._refresh_engine()
        return self._responses(problems, first)

    def _refresh_engine(self) -> None:
        self.optimization.weights_ready()  # an engine reads them without the passes that would wait for their gather
        self.engine.refresh()

    def _responses(self, problems: Sequence[Problem], first: int) -> list[Rollout]:
        prompts = [self.renderer.student(problem) for problem in problems]
        seeds = [sequence_seed(self.config.run.seed, place, problem.id) for place, problem in enumerate(problems, first)]
        responses = self.engine.generate(prompts, seeds, self.config.rollout)
        return [Rollout(p, prompt, r.ids, r.truncated, r.logprobs) for p, prompt, r in zip(problems, prompts, responses, strict=True)]

    def logprob_gap(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Metrics of how far the engine is from the training model, on the first engine.checked rollouts of each rank. Collective."""
        checked, temperature = rollouts[: self.config.engine.checked], self.config.rollout.temperature
        return logprob_gap(self.model, checked, temperature, self.config.parallel.micro_batch_tokens) if self.config.engine.checked else {}

    def examples(self, rollouts: Sequence[Rollout], contexts: Sequence[TeacherContext]) -> list[Example]:
        """Both roles' view of each rollout."""
        pairs = zip(rollouts, contexts, strict=True)
        return [Example(r.prompt_ids, c.prompt_ids, r.response_ids, self.bins.of(r.problem), self._second_prompt(r)) for r, c in pairs]

    def _second_prompt(self, rollout: Rollout) -> tuple[int, ...]:
        """After which the teacher reads a response again, for a target that is a mix."""
        match self.config.distill.target:
            case "teacher":
                return ()
            case "mix_unaided":
                return rollout.prompt_ids
            case "mix_exposures":
                return self.teacher_view.context(rollout.problem, self.config.distill.mix_exposure).prompt_ids

    def contexts(self, rollouts: Sequence[Rollout], alpha: float) -> list[TeacherContext]:
        """What the teacher sees of each rollout's problem at reveal ratio `alpha`."""
        return [self.teacher_view.context(r.problem, alpha) for r in rollouts]

    def exposed(self, rollouts: Sequence[Rollout], exposure: Exposure) -> list[TeacherContext]:
        """What the teacher sees of each rollout's problem under `exposure`, which may differ between difficulty bins."""
        return [self.teacher_view.context(r.problem, exposure.of(self.bins.of(r.problem))) for r in rollouts]

    def of_bin(self, rollouts: Sequence[Rollout], number: int) -> list[Rollout]:
        """Those to problems of one difficulty bin."""
        return [rollout for rollout in rollouts if self.bins.of(rollout.problem) == number]

    def answered(self, rollout: Rollout) -> bool:
        """Whether the last boxed answer is the reference's, letter by letter (evaluation grades by meaning)."""
        return final_boxed(self.renderer.opening + self.renderer.decode(rollout.response_ids)) == rollout.problem.answer

    def gather(self) -> str:
        """Gather what the progress signal and the grounding need of the start model; what to tell the user of it ('' for nothing).

        Nothing is gathered again where a checkpoint gave it. Raises DataError when no probe problem has a correct response. Collective.
        """
        exposure, problems = self.config.exposure, self.probe_problems
        warn_of_bias(exposure)
        samples = exposure.probe_samples if needs_own(exposure) else int(exposure.progress == "probe_kl")
        if samples and not self.own.rollouts:
            self.own.rollouts = self.probe_rollouts(samples)
        if not needs_own(exposure):
            return ""
        if not self.own.right:
            self.own.right = self.right_and_whole(self.own.rollouts)
        return self.own.account(len(problems))

    def graded_own(self) -> OwnResponses:
        """The start model's own responses, graded: those gathered, or, where the run needs none, gathered now and not kept. Collective."""
        if self.own.right:
            return self.own
        rollouts = self.probe_rollouts(self.config.exposure.probe_samples)
        return OwnResponses(rollouts, self.right_and_whole(rollouts))

    def probe_by_bin(self) -> None:
        """Have probes measure each difficulty bin's problems apart, once they are sorted, and the own responses gathered.

        Raises DataError when the progress signal or the grounding needs correct responses, and a bin has none.
        """
        self.probe_sets = []
        for number in range(self.config.exposure.bins):
            problems = [problem for problem in self.probe_problems if self.bins.of(problem) == number]
            own, references = self.own.of_problems(problems), self._reference_nll(problems)
            if needs_own(self.config.exposure):
                own.account(len(problems))
            progress = self._progress_signal(own, references, partial(self.of_bin, number=number))
            self.probe_sets.append(ProbeSet(problems, own, references, progress))

    def right_and_whole(self, rollouts: Sequence[Rollout]) -> list[bool]:
        """Whether each response is right by meaning, and was not cut at the limit. Collective."""
        return [right and not r.truncated for right, r in zip(graded(rollouts, self.renderer), rollouts, strict=True)]

    def probe_rollouts(self, samples: int, earlier: int = 0) -> list[Rollout]:
        """So many responses to each probe problem, sample after sample, at places below 0 beyond `earlier` such samples. Collective."""
        problems = list(self.probe_problems) * samples
        return self.shared_rollout(problems, first=-len(problems) - earlier * len(self.probe_problems))

    def probe(self, finished: Finished, exposure: Exposure) -> tuple[UpdateStats, dict[str, float]]:
        """What the controller learns of a finished update, and the metrics of what was measured. Collective over all ranks.

        A signal that is not free, the references' NLL and the grounding are measured every so many updates (`probe_interval`), at the
        start and at the end. Raises TrainingError when a value is not finite.
        """
        update = finished.update
        due = update % probe_interval(self.config.exposure) == 0 or update == self.config.run.updates
        if not due:  # no pass is sure to follow on every rank, that could hide the gather of the weights
            self.optimization.weights_ready()
        if not self.probe_sets:
            return self._probe(ProbeSet(self.probe_problems, self.own, self.references, self.progress), finished, exposure, due)
        self._drawn = None
        parts = [
            self._probe(probe, self._finished_of(finished, i), Exposure(exposure.of(i), exposure.decision_id), due)
            for i, probe in enumerate(self.probe_sets)
        ]
        metrics = {bin_metric(i, name): value for i, (_, part) in enumerate(parts) for name, value in part.items()}
        stats = self._whole(finished, exposure, [stats for stats, _ in parts])
        return stats, metrics | ({"probe/nll": stats.probe_nll} if stats.probe_nll is not None else {})

    def refresh_teacher(self, stats: UpdateStats) -> dict[str, float]:
        """Make a refreshed teacher the student's copy where a probe has shown a gain; whether it was, as a metric. Collective.

        What is measured after the last update alone refreshes nothing: a longer run would not have it.
        """
        if self.teacher.kind != "refreshed":
            return {}
        regular = stats.update % probe_interval(self.config.exposure) == 0
        # Ranks whose sums differed in the last bit would else have different teachers.
        progress = from_rank_0(stats.progress) if regular and stats.progress is not None else None
        opens = self.gate.opens(stats.update, progress)
        if opens:
            self.optimization.weights_ready()
            self.teacher.refresh()
        return {"distill/teacher_refreshed": float(opens)}

    def _finished_of(self, finished: Finished, number: int) -> Finished:
        """What one difficulty bin has of a finished update."""
        result = finished.result.of_bin(number) if finished.result else None
        return Finished(finished.update, result, self.of_bin(finished.rollouts, number))

    def _whole(self, finished: Finished, exposure: Exposure, parts: Sequence[UpdateStats]) -> UpdateStats:
        """Statistics of all bins together; the NLL is the mean over the tokens of all references."""
        result = finished.result
        nlls = [part.probe_nll for part in parts if part.probe_nll is not None]
        tokens = [sum(len(reference) for _, reference in probe.references.pairs) for probe in self.probe_sets]
        return UpdateStats(
            update=finished.update,
            exposure=exposure,
            kl=result.kl if result else 0.0,
            disagreement=result.disagreement if result else 0.0,
            confidence=result.confidence if result else 0.0,
            progress=None,
            probe_nll=math.fsum(nll * count for nll, count in zip(nlls, tokens, strict=True)) / sum(tokens) if nlls else None,
            grounding=None,
            by_bin=tuple(parts),
        )

    def _probe(self, probe: ProbeSet, finished: Finished, exposure: Exposure, due: bool) -> tuple[UpdateStats, dict[str, float]]:
        """As `probe`, on some of the probe problems."""
        settings, result, update = self.config.exposure, finished.result, finished.update
        nll = probe.references.measure(finished)[0] if due else None
        progress, metrics = nll, dict[str, float]()
        if probe.progress is not probe.references:
            progress, metrics = probe.progress.measure(finished) if due or probe.progress.free else (None, {})
        grounded = due and update > 0 and settings.mode == "learned" and settings.grounding != "off"
        stats = UpdateStats(
            update=update,
            exposure=exposure,
            kl=result.kl if result else 0.0,
            disagreement=result.disagreement if result else 0.0,
            confidence=result.confidence if result else 0.0,
            progress=progress,
            probe_nll=nll,
            grounding=self._grounding(exposure.alpha, probe) if grounded else None,
        )
        check_probe({"the probe's NLL": nll, "its grounding": stats.grounding, f"its {settings.progress}": progress}, update)
        known = {"probe/nll": nll, "probe/progress": progress}
        return stats, metrics | {name: value for name, value in known.items() if value is not None}

    def score(self, texts: Sequence[ScoredText]) -> float:
        """`weighted_nll` of the student. Collective."""
        return weighted_nll(self.model, texts, self.config.parallel.micro_batch_tokens)

    def _mean(self, pairs: Sequence[Pair]) -> float:
        return mean_nll(self.model, pairs, self.config.parallel.micro_batch_tokens)

    def shared_rollout(self, problems: Sequence[Problem], first: int) -> list[Rollout]:
        """As `rollout`, with the problems shared out over data-parallel ranks, in pieces of an update's size. Collective."""
        rank, size = data_parallel_place()
        start, end = rank * len(problems) // size, (rank + 1) * len(problems) // size
        step = max(1, self.config.data.batch // size)
        mine: list[Rollout] = []
        self._refresh_engine()
        for i in range(start, end, step):
            mine += self._responses(problems[i : min(i + step, end)], first + i)
        return self._of_all_ranks(mine)

    def _of_all_ranks(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        return [r for share in gathered(list(rollouts), parallel_state.get_data_parallel_group()) for r in share]

    def _reference_nll(self, problems: Sequence[Problem]) -> ReferenceNLL:
        return ReferenceNLL([(self.renderer.student(p), self.renderer.reference(p)) for p in problems], self._mean)

    def _progress_signal(
        self, own: OwnResponses, references: ReferenceNLL, part: Callable[[Sequence[Rollout]], list[Rollout]]
    ) -> ProgressSignal:
        """The configured one, on these own responses and references, and on that part of fresh responses to all probe problems."""
        exposure, grade = self.config.exposure, partial(graded, renderer=self.renderer)
        match exposure.progress:
            case "probe_nll":
                return references
            case "probe_own":
                return OwnNLL(own, self.score)
            case "probe_margin":
                return OwnNLL(own, self.score, exposure.wrong_weight)
            case "probe_accuracy":
                return ProbeAccuracy(lambda update: part(self._fresh_rollouts(update)), grade)
            case "train_accuracy":
                return TrainAccuracy(self._of_all_ranks, grade)
            case "probe_kl":
                return ProbeKL(own, self._probe_kl, len(references.pairs))
            case "train_kl":
                return TrainKL()

    @property
    def gradient_signal(self) -> GradientSignal:
        """The configured signal, where mode aligned may follow it."""
        return cast("GradientSignal", self.progress)

    def _fresh_rollouts(self, update: int) -> list[Rollout]:
        """A response to each probe problem after `update` updates, at places that neither the stream nor the start's responses have.

        With difficulty bins they are drawn once for all bins of a probe.
        """
        if self._drawn is None or not self.probe_sets:
            self._drawn = self.probe_rollouts(1, earlier=self.config.exposure.probe_samples + update)
        return self._drawn

    def alignment(self, rollouts: Sequence[Rollout]) -> list[float] | None:
        """How well each exposure of mode aligned's grid agrees with progress, on the rollouts of the update that begins. Collective.

        With difficulty bins: of each bin's problems, one bin after the other, NaN where a bin has no score.
        None when the progress signal has no gradient now.
        """
        if not self.probe_sets:
            return self._alignment(self.gradient_signal, rollouts)
        nothing = [math.nan] * self.config.exposure.grid
        signals = [cast("GradientSignal", probe.progress) for probe in self.probe_sets]
        scores = [self._alignment(signal, self.of_bin(rollouts, i)) or nothing for i, signal in enumerate(signals)]
        return [score for part in scores for score in part]

    def _alignment(self, signal: GradientSignal, rollouts: Sequence[Rollout]) -> list[float] | None:
        config, tokens = self.config, self.config.parallel.micro_batch_tokens
        texts = signal.texts(rollouts)
        if not any(text.weight for text in texts):
            if is_main():
                warn_once(
                    f"exposure.progress {config.exposure.progress} had no gradient when an exposure was to be chosen, so it stays as it "
                    "is (with train_accuracy no response ended, or all were right, or none): where it lasts, take a larger data.batch or "
                    "problems that are solved sometimes"
                )
            return None
        self.optimization.zero_grad()
        add_progress_gradient(self.optimization.wrapped, self.model, texts, tokens)
        step = config.exposure.score_step * self.optimization.peak_lr
        read = rollouts[: math.ceil(len(rollouts) * config.exposure.score_share)]
        return alignment_scores(
            self.model,
            self.teacher,
            [(r.prompt_ids, r.response_ids) for r in read],
            teacher_passes(
                self.model,
                self.teacher,
                [self.examples(read, self.contexts(read, alpha)) for alpha in exposure_grid(config.exposure)],
                tokens,
                self.divergence.target,
            ),
            self.divergence,
            tokens,
            config.distill.normalize,
            lambda: trial_step(self.optimization, step, seed=self.optimization.scheduler.num_steps),
        )

    def keep_batch(self, update: int, exposure: Exposure, rollouts: Sequence[Rollout]) -> None:
        """Write the batch of a skipped update for inspection. Collective over the ranks of one model."""
        losses = example_losses(self.model, self.teacher, self.examples(rollouts, self.exposed(rollouts, exposure)), self.divergence)
        if losses and parallel_state.get_tensor_model_parallel_rank() == parallel_state.get_context_parallel_rank() == 0:
            alphas = [exposure.of(self.bins.of(rollout.problem)) for rollout in rollouts]
            self.skipped.save(update, data_parallel_place()[0], alphas, rollouts, losses)

    def _grounding(self, alpha: float, probe: ProbeSet | None = None) -> float:
        """Log-probability of the grounding text of the probe problems (of `probe`) under the exposed teacher, a mean in nats a token.

        A fixed set of problems: grounding moves with α and the teacher's weights, not with the batch.
        """
        problems, own = (probe.problems, probe.own) if probe else (self.probe_problems, self.own)
        prompts = {p.id: self.teacher_view.context(p, alpha).prompt_ids for p in problems}
        with self.teacher.applied():
            if self.config.exposure.grounding == "own":
                return -self.score([ScoredText(prompts[r.problem.id], r.response_ids, weight) for r, weight in own.correct()])
            text = self.renderer.reference if self.config.exposure.grounding == "solution" else self.renderer.answer
            return -self._mean([(prompts[p.id], text(p)) for p in problems])

    def _probe_kl(self, rollouts: Sequence[Rollout]) -> float:
        """KL at the fixed probe exposure."""
        rank, size = data_parallel_place()
        mine = rollouts[rank::size]
        examples = self.examples(mine, self.contexts(mine, self.config.exposure.probe_exposure))
        return measure_step(self.model, self.teacher, examples, self.divergence, self.config.parallel.micro_batch_tokens).kl

    def state(self, update: int, loading: bool = False) -> dict[str, Any]:
        """Everything that a resumed run needs, as megatron.core's sharded state. Collective when saving."""
        model = trained_state(self.model, trained_prefix(self.model))
        optimizer = self.optimization.sharded_state_dict(model, loading)
        state = {"model": model, "teacher": self.teacher.sharded_state_dict(), "optimizer": optimizer}
        if loading:
            return state
        state |= self.adapters.state() if self.adapters else {}
        return state | {
            "run": {
                "update": update,
                "scheduler": self.optimization.scheduler.state_dict(),
                "sampler": self.sampler.state_dict(),
                "probe": fingerprint(self.probe_problems),
                "exposure": from_rank_0(self.service.state_dict()),
                "scaling_history": from_rank_0(scaling_history(self.model)),  # data-parallel ranks have others
                **self.own.state_dict(),
                **self.bins.state_dict(),
                **self.gate.state_dict(),
                "rng": rng_states(),
                "skipped_in_a_row": self.skipped.in_a_row,
                "config": asdict(self.config),
            }
        }

    def load(self, folder: Path) -> int:
        """Continue from a checkpoint that `check_resumable` lets pass; returns its number of finished updates. Collective."""
        loaded = read_folder(folder, self.state(0, loading=True))
        run = loaded["run"]
        load_trained_state(self.model, loaded["model"])
        self.teacher.load_state_dict(loaded["teacher"])
        self.optimization.load_state_dict(loaded["optimizer"])
        self.optimization.scheduler.num_steps = 0  # megatron.core's loader counts on from what is there
        self.optimization.scheduler.load_state_dict(run["scheduler"])
        self.service.load_state_dict(run["exposure"])
        load_scaling_history(self.model, run.get("scaling_history", {}))
        self.own.load_state_dict(run, self.probe_problems, self.renderer)
        self.bins.load_state_dict(run)
        self.gate.load_state_dict(run)
        check_weights([*self.model.named_parameters(), *((f"teacher tensor {i}", w) for i, w in enumerate(self.teacher.weights))], folder)
        in_a_row = run.get("skipped_in_a_row", 0)
        self.skipped.in_a_row = in_a_row if in_a_row < self.skipped.limit else 0  # a run that ended for it begins to count anew
        restore_rng(run["rng"])
        return int(run["update"])
