"""The mismatch between student and teacher against the exposure: one set of responses, judged by the teacher at each α."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core import parallel_state
from numpy.typing import NDArray

from megatron_atesd.checkpoint.fingerprint import fingerprint
from megatron_atesd.checkpoint.model_folder import load_model_weights
from megatron_atesd.checkpoint.reading import read_folder
from megatron_atesd.checkpoint.torch_dist import StoredTensors
from megatron_atesd.config import DistillConfig, Precision, naming_section
from megatron_atesd.config.loading import software_versions
from megatron_atesd.distill.likelihood import text_nlls
from megatron_atesd.distill.mismatch import STATISTICS, mismatch_sums
from megatron_atesd.distill.step import divergence_of
from megatron_atesd.distill.teacher import PREFIX, Teacher
from megatron_atesd.errors import TrainingError
from megatron_atesd.logs import tell
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.micro_batches import Pair, TokenIds
from megatron_atesd.model.trained import has_adapters
from megatron_atesd.parallel.groups import data_parallel_place, gathered, is_main, patient_barrier
from megatron_atesd.parallel.session import end_start
from megatron_atesd.records import Rollout
from megatron_atesd.rollout.engines import build_engine
from megatron_atesd.rollout.sampling import sequence_seed
from megatron_atesd.train.finite import check_weights
from megatron_atesd.train.mismatch_curve import mismatch_curve
from megatron_atesd.train.mismatch_inputs import Measurement, MeasurementInputs


class Mismatch:
    """Student, teacher and the student's responses; create it inside `parallel_session`. Every method is collective over all ranks."""

    def __init__(self, task: Measurement, inputs: MeasurementInputs) -> None:
        """Loads the model and draws the responses."""
        self.task, self.inputs, config = task, inputs, inputs.config
        with naming_section("megatron", config.megatron):
            self.model = build_model(inputs.model.architecture, inputs.megatron, config.parallel.packed)
        load_model_weights(self.model, inputs.model.folder, task.settings.model.path)
        check_weights(self.model.named_parameters(), inputs.model.folder)
        self.teacher = load_teacher(self.model, inputs.model.folder, config.distill, config.precision.teacher)
        self.divergence, self.tokens = divergence_of(config), config.parallel.micro_batch_tokens
        self.rollouts = self._responses()
        self.pairs: list[Pair] = [(r.prompt_ids, r.response_ids) for r in self.rollouts]
        self.prompts: list[list[TokenIds]] = [[c.prompt_ids for c in seen] for seen in inputs.contexts for _ in range(task.samples)]

    def _responses(self) -> list[Rollout]:
        """Of all problems, the samples of one after the other, equal on every rank; each has a seed of its own."""
        inputs, renderer = self.inputs, self.inputs.model.renderer
        engine = build_engine(inputs.config, self.model, renderer, inputs.model.hf_folder)
        engine.refresh()
        wait_for_all = patient_barrier()
        end_start(inputs.config.parallel)
        wanted = [(problem, sample) for problem in inputs.problems for sample in range(self.task.samples)]
        rank, size = data_parallel_place()
        mine = wanted[rank * len(wanted) // size : (rank + 1) * len(wanted) // size]
        prompts = [renderer.student(problem) for problem, _ in mine]
        seeds = [sequence_seed("mismatch", self.task.seed, problem.id, sample) for problem, sample in mine]
        responses = engine.generate(prompts, seeds, inputs.config.rollout) if mine else []
        wait_for_all()
        own = [Rollout(p, prompt, r.ids, r.truncated) for (p, _), prompt, r in zip(mine, prompts, responses, strict=True)]
        return [rollout for share in gathered(own, parallel_state.get_data_parallel_group()) for rollout in share]

    def record(self) -> dict[str, Any]:
        """Everything that mismatch.json holds. Raises TrainingError when a value is not finite."""
        _tell(f"{len(self.rollouts)} responses, {sum(len(r.response_ids) for r in self.rollouts)} tokens; the teacher reads them")
        contexts, tokens_N = self.inputs.contexts, self._by_problem([len(r.response_ids) for r in self.rollouts])
        sums_NA4 = self._by_problem(mismatch_sums(self.model, self.teacher, self.pairs, self.prompts, self.divergence, self.tokens).numpy())
        statistics = {name: (sums_NA4[:, :, i], tokens_N) for i, name in enumerate(STATISTICS)}
        if self.inputs.grounding:
            statistics["grounding"] = (-self._grounding_nlls(), np.array([len(text) for text in self.inputs.grounding], dtype=np.float64))
        for name, (sums_NA, _) in statistics.items():
            if not np.isfinite(sums_NA).all():
                raise TrainingError(f"{name} is not finite at some exposure: the weights are broken; take another checkpoint")
        shown = {name: np.array([[getattr(c, name) for c in seen] for seen in contexts], np.float64) for name in ("revealed", "segments")}
        return self._measured() | mismatch_curve(self.task.alphas, statistics, shown)

    def _by_problem(self, values: Any) -> NDArray[np.float64]:
        """Values of each response, added over the samples of a problem."""
        values = np.asarray(values, dtype=np.float64)
        return values.reshape(len(self.inputs.problems), self.task.samples, *values.shape[1:]).sum(axis=1)

    def _grounding_nlls(self) -> NDArray[np.float64]:
        """NLL of each problem's grounding text under the teacher at each exposure [N, A], nats; each different prompt is read once."""
        of = {(tuple(c.prompt_ids), tuple(text)): 0.0 for seen, text in self._grounded() for c in seen}
        with self.teacher.applied():
            of = dict(zip(of, text_nlls(self.model, list(of), self.tokens), strict=True))
        return np.array([[of[tuple(c.prompt_ids), tuple(text)] for c in seen] for seen, text in self._grounded()])

    def _grounded(self) -> list[tuple[Any, TokenIds]]:
        return list(zip(self.inputs.contexts, self.inputs.grounding, strict=True))

    def _measured(self) -> dict[str, Any]:
        """What was measured, on what, and how."""
        task, config = self.task, self.inputs.config
        sections = ("model", "precision", "prompt", "rollout", "engine", "distill", "megatron")
        exposure = {name: getattr(config.exposure, name) for name in ("reveal", "reference", "grounding")}
        texts = json.dumps([(p.id, p.problem, p.solution, p.answer) for p in self.inputs.problems])
        return {
            "model": str(self.inputs.model.folder),
            "model_fingerprint": fingerprint(self.inputs.model.folder),
            "teacher": _described(self.teacher),
            "data": str(task.data),
            "data_fingerprint": hashlib.sha256(texts.encode()).hexdigest()[:16],
            "problems": len(self.inputs.problems),
            "samples": task.samples,
            "seed": task.seed,
            "tokens": sum(len(r.response_ids) for r in self.rollouts),
            "truncated": sum(r.truncated for r in self.rollouts) / len(self.rollouts),
            "teacher_prompts": {"different": sum(len(set(map(tuple, p))) for p in self.prompts), "all": sum(map(len, self.prompts))},
            "settings": {name: asdict(config)[name] for name in sections} | {"exposure": exposure},
            "versions": software_versions(),
        }


def load_teacher(model: HiddenStateGPT, folder: Path, distill: DistillConfig, precision: Precision | None) -> Teacher:
    """The teacher of a training's checkpoint, unless distill.teacher is live; else the weights of `model` themselves, without a copy.

    That is the teacher of a training that begins from `folder`. Of a training of new adapters the initial teacher is their base.
    Collective. Raises CheckpointError.
    """
    weights = folder / "weights"
    kept = weights.is_dir() and bool(StoredTensors(weights, PREFIX).shapes())
    if distill.teacher != "live" and not kept and has_adapters(model):
        return Teacher(model, "initial", precision=precision)
    if distill.teacher == "live" or not kept:
        return Teacher(model, "live", precision=precision)
    teacher = Teacher(model, distill.teacher, distill.ema_decay, distill.teacher_offload, precision, new_adapters=False)
    teacher.load_state_dict(read_folder(folder, teacher.sharded_state_dict()))
    return teacher


def _described(teacher: Teacher) -> str:
    if teacher.is_base:
        return "the base, without adapters"
    return "the checkpoint's" if teacher.weights else "the student's weights"


def _tell(what: str) -> None:
    if is_main():
        tell(what)
