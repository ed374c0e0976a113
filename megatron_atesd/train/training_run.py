"""A training run put together: every part built once from the configuration, and its whole state for a checkpoint."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_atesd.checkpoint.model_folder import load_model_weights
from megatron_atesd.checkpoint.random_states import restore_rng, rng_states
from megatron_atesd.checkpoint.reading import check_model_folder, read_folder
from megatron_atesd.config import TrainConfig
from megatron_atesd.data.boxes import last_boxed
from megatron_atesd.data.sampler import ProblemSampler, fingerprint
from megatron_atesd.distill.alignment import add_progress_gradient, alignment_scores
from megatron_atesd.distill.likelihood import mean_nll
from megatron_atesd.distill.step import Example, StepResult, divergence_of, example_losses, measure_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.exposure.aligned import exposure_grid
from megatron_atesd.exposure.service import ExposureService
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.micro_batches import TokenIds
from megatron_atesd.model.scaling_history import load_scaling_history, scaling_history
from megatron_atesd.parallel.groups import data_parallel_place, from_rank_0
from megatron_atesd.records import Exposure, Problem, Rollout, TeacherContext, UpdateStats
from megatron_atesd.rollout.engine import RolloutEngine
from megatron_atesd.rollout.sampling import sequence_seed
from megatron_atesd.rollout.training_engine import TrainingEngine
from megatron_atesd.train.checks import TrainingInputs
from megatron_atesd.train.finite import Skipped, check_probe, check_weights
from megatron_atesd.train.lengths import check_lengths
from megatron_atesd.train.optimizer import build_optimization
from megatron_atesd.train.trial_step import trial_step


class TrainingRun:
    """Data, model, teacher, optimizer and exposure service of one run; create it inside `parallel_session`."""

    def __init__(self, config: TrainConfig, inputs: TrainingInputs) -> None:
        self.config, self.probe_problems = config, inputs.probe_problems
        folder, self.hf_folder, self.renderer = inputs.model.folder, inputs.model.hf_folder, inputs.model.renderer
        check_lengths(config, inputs, dist.get_rank(), dist.get_world_size())
        self.sampler = ProblemSampler(inputs.problems, config.data.batch, config.run.seed, *data_parallel_place())
        self.model = build_model(inputs.model.architecture, inputs.megatron, config.parallel.packed)
        check_model_folder(folder)
        load_model_weights(self.model, folder)
        check_weights(self.model.named_parameters(), folder)
        self.engine: RolloutEngine = TrainingEngine(self.model, self.renderer.stop_ids, self.renderer.id_limit, config.precision.rollout)
        distill = config.distill
        self.teacher = Teacher(self.model, distill.teacher, distill.ema_decay, distill.teacher_offload, config.precision.teacher)
        self.optimization = build_optimization(self.model, config.optimizer, config.ddp, config.schedule, config.run.updates)
        self.service = ExposureService(config.exposure, config.run.updates, config.run.seed)
        self.divergence = divergence_of(config)
        self.probe_rollouts: list[Rollout] = []
        self.skipped = Skipped(Path(config.run.dir) / "skipped", config.run.max_skipped)

    def rollout(self, problems: Sequence[Problem], first: int) -> list[Rollout]:
        """One student response a problem, whose seed is made of run seed, place in the stream of problems, and problem.

        first: place of the first one. Places below 0 are no problem's of the stream.
        """
        prompts = [self.renderer.student(problem) for problem in problems]
        seeds = [sequence_seed(self.config.run.seed, place, problem.id) for place, problem in enumerate(problems, first)]
        responses = self.engine.generate(prompts, seeds, self.config.rollout)
        return [Rollout(p, prompt, r.ids, r.truncated) for p, prompt, r in zip(problems, prompts, responses, strict=True)]

    def examples(self, rollouts: Sequence[Rollout], contexts: Sequence[TeacherContext]) -> list[Example]:
        """Both roles' view of each rollout."""
        return [Example(r.prompt_ids, c.prompt_ids, r.response_ids) for r, c in zip(rollouts, contexts, strict=True)]

    def contexts(self, rollouts: Sequence[Rollout], alpha: float) -> list[TeacherContext]:
        """What the teacher sees of each rollout's problem at reveal ratio `alpha`."""
        return [self.teacher_context(r.problem, alpha) for r in rollouts]

    def teacher_context(self, problem: Problem, alpha: float) -> TeacherContext:
        """What the teacher sees; in mode none it is the student's prompt."""
        context = self.renderer.teacher(problem, alpha)
        if self.config.exposure.mode == "none":
            return TeacherContext(self.renderer.student(problem), 0, context.segments)
        return context

    def answered(self, rollout: Rollout) -> bool:
        """Whether the last boxed answer is the reference's, letter by letter (evaluation grades by meaning)."""
        return last_boxed(self.renderer.decode(rollout.response_ids)) == rollout.problem.answer

    @cached_property
    def probe_pairs(self) -> list[tuple[TokenIds, TokenIds]]:
        return [(self.renderer.student(p), self.renderer.reference(p)) for p in self.probe_problems]

    def probe(self, update: int, exposure: Exposure, result: StepResult | None) -> UpdateStats:
        """What the controller learns after `update` finished updates. Collective over all ranks.

        Raises TrainingError when it is not finite.
        """
        learned = self.config.exposure.mode == "learned"
        stats = UpdateStats(
            update=update,
            exposure=exposure,
            kl=result.kl if result else 0.0,
            disagreement=result.disagreement if result else 0.0,
            confidence=result.confidence if result else 0.0,
            probe_nll=mean_nll(self.model, self.probe_pairs, self.config.parallel.micro_batch_tokens),
            grounding=self._grounding(exposure.alpha) if learned else math.nan,
            probe_kl=self._probe_kl() if learned and self.config.exposure.progress == "probe_kl" else None,
        )
        grounding = stats.grounding if learned else None
        check_probe({"the probe's NLL": stats.probe_nll, "its grounding": grounding, "its KL": stats.probe_kl}, update)
        return stats

    def alignment(self, rollouts: Sequence[Rollout]) -> list[float] | None:
        """How well each exposure of mode aligned's grid agrees with progress, on the rollouts of the update that begins. Collective."""
        config, tokens = self.config, self.config.parallel.micro_batch_tokens
        self.optimization.zero_grad()
        add_progress_gradient(self.optimization.wrapped, self.model, self.progress.texts(), tokens)
        examples_of = [self.examples(rollouts, self.contexts(rollouts, alpha)) for alpha in exposure_grid(config.exposure)]
        return alignment_scores(
            self.model,
            self.teacher,
            examples_of,
            self.divergence,
            tokens,
            config.distill.normalize,
            lambda: trial_step(self.optimization, config.exposure.score_step),
        )

    def keep_batch(self, update: int, exposure: Exposure, rollouts: Sequence[Rollout]) -> None:
        """Write the batch of a skipped update for inspection. Collective over the ranks of one model."""
        losses = example_losses(self.model, self.teacher, self.examples(rollouts, self.contexts(rollouts, exposure.alpha)), self.divergence)
        if losses and parallel_state.get_tensor_model_parallel_rank() == parallel_state.get_context_parallel_rank() == 0:
            self.skipped.save(update, data_parallel_place()[0], exposure.alpha, rollouts, losses)

    def _grounding(self, alpha: float) -> float:
        """Mean log-probability (nats per token) of the probe references under the exposed teacher.

        A fixed set of problems: grounding moves with α and the teacher's weights, not with the batch.
        """
        text = self.renderer.reference if self.config.exposure.grounding == "solution" else self.renderer.answer
        pairs = [(self.teacher_context(p, alpha).prompt_ids, text(p)) for p in self.probe_problems]
        with self.teacher.applied():
            return -mean_nll(self.model, pairs, self.config.parallel.micro_batch_tokens)

    def _probe_kl(self) -> float:
        """KL at the fixed probe exposure on the rollouts that the start's student gave for the probe problems."""
        if not self.probe_rollouts:
            self.probe_rollouts = self.rollout(self.probe_problems, first=-len(self.probe_problems))
        rank, size = data_parallel_place()
        rollouts = self.probe_rollouts[rank::size]
        examples = self.examples(rollouts, self.contexts(rollouts, self.config.exposure.probe_exposure))
        return measure_step(self.model, self.teacher, examples, self.divergence, self.config.parallel.micro_batch_tokens).kl

    def state(self, update: int, loading: bool = False) -> dict[str, Any]:
        """Everything that a resumed run needs, as megatron.core's sharded state. Collective when saving."""
        model = self.model.sharded_state_dict(prefix="model.")
        optimizer = self.optimization.sharded_state_dict(model, loading)
        state = {"model": model, "teacher": self.teacher.sharded_state_dict(), "optimizer": optimizer}
        if loading:
            return state
        return state | {
            "run": {
                "update": update,
                "scheduler": self.optimization.scheduler.state_dict(),
                "sampler": self.sampler.state_dict(),
                "probe": fingerprint(self.probe_problems),
                "exposure": from_rank_0(self.service.state_dict()),
                "scaling_history": from_rank_0(scaling_history(self.model)),  # data-parallel ranks have others
                "probe_responses": [(r.response_ids, r.truncated) for r in self.probe_rollouts],
                "rng": rng_states(),
                "skipped_in_a_row": self.skipped.in_a_row,
                "config": asdict(self.config),
            }
        }

    def load(self, folder: Path) -> int:
        """Continue from a checkpoint that `check_resumable` lets pass; returns its number of finished updates. Collective."""
        loaded = read_folder(folder, self.state(0, loading=True))
        run = loaded["run"]
        self.model.load_state_dict({name.removeprefix("model."): value for name, value in loaded["model"].items()})
        self.teacher.load_state_dict(loaded["teacher"])
        self.optimization.load_state_dict(loaded["optimizer"])
        self.optimization.scheduler.load_state_dict(run["scheduler"])
        self.service.load_state_dict(run["exposure"])
        load_scaling_history(self.model, run.get("scaling_history", {}))
        self.probe_rollouts = [
            Rollout(problem, self.renderer.student(problem), tuple(ids), truncated)
            for problem, (ids, truncated) in zip(self.probe_problems, run["probe_responses"], strict=False)
        ]
        check_weights([*self.model.named_parameters(), *((f"teacher tensor {i}", w) for i, w in enumerate(self.teacher.weights))], folder)
        in_a_row = run.get("skipped_in_a_row", 0)
        self.skipped.in_a_row = in_a_row if in_a_row < self.skipped.limit else 0  # a run that ended for it begins to count anew
        restore_rng(run["rng"])
        return int(run["update"])
