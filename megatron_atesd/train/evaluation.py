"""One evaluation of one file by the model that trains: responses, grades and the folder that tools/evaluate.py would write.

The seed of a response is made of eval.seed, problem and sample: neither the update nor the run's own random numbers matter to it, nor it
to them.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch.distributed as dist

from megatron_atesd.checkpoint.run_checkpoints import set_aside
from megatron_atesd.evaluate.figures import figures_of
from megatron_atesd.evaluate.responses import Answered, Key, ResponseReader, ResponseWriter, finish, write_whole
from megatron_atesd.evaluate.same_settings import SETTINGS, Decisive
from megatron_atesd.evaluate.sample import answer_problems
from megatron_atesd.parallel.agreement import on_rank_0
from megatron_atesd.parallel.context import context_place
from megatron_atesd.parallel.groups import data_parallel_place, is_main, patient_barrier, tensor_parallel_first
from megatron_atesd.report.run_files import read_object
from megatron_atesd.rollout.engine import RolloutEngine
from megatron_atesd.rollout.engines import build_engine
from megatron_atesd.train.evaluation_files import EvaluationFile, decisive, evaluation_folder, evaluation_settings
from megatron_atesd.train.own_responses import job_grader
from megatron_atesd.train.selection import Figures
from megatron_atesd.train.training_run import TrainingRun

RESULT = "evaluation.json"


@dataclass(frozen=True)
class Graded:
    """All responses, by problem and sample, the verdict on each, what follows from them, and how often grading gave up."""

    answered: Sequence[Answered]
    right: Sequence[bool]
    figures: Figures
    faults: Mapping[str, int]


class Evaluator:
    """Evaluates the student of one run as it is when it is asked. Collective over all ranks."""

    def __init__(self, run: TrainingRun) -> None:
        self._run, self._config, self._dir = run, run.config.eval, Path(run.config.run.dir)
        self.settings = evaluation_settings(run.config)
        self._wait = patient_barrier() if run.config.eval.files else lambda: None

    def evaluate(self, file: EvaluationFile, step: int) -> Figures:
        """The figures of the student after update `step`, on all ranks; responses that are there already are not generated again.

        step_<step> is on disk (0: the start model is in model.path). Raises CheckpointError where the folder cannot be written.
        """
        out = evaluation_folder(self._dir, file, step)
        reader = ResponseReader(out, file.problems, self._config.samples, greedy=False)
        there = on_rank_0(lambda: self._open(file, step, reader), f"{out} cannot be used")
        if len(there) < reader.total:
            self._generate(file, out, there)
            self._wait()
        graded = _graded(file, reader.read_all(), self._run.renderer.opening) if is_main() else None
        self._wait()  # for as long as grading takes
        return on_rank_0(lambda: self._write(file, step, graded), f"{out} cannot be written")

    def holds(self, folder: Path, file: EvaluationFile, step: int) -> bool:
        """Whether `folder`, if it is there, holds responses that would be made the same now, wherever the model has been moved to."""
        made, wanted = read_object(folder / SETTINGS), json.loads(json.dumps(self._decisive(file, step)))
        return not folder.exists() or {**made, "--model": ""} == {**wanted, "--model": ""}

    def _open(self, file: EvaluationFile, step: int, reader: ResponseReader) -> dict[Key, int]:
        """Make the folder, with what decides its responses; the tokens of those that are there already."""
        out = evaluation_folder(self._dir, file, step)
        if not self.holds(out, file, step):
            set_aside(out.parent, step - 1)
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / SETTINGS, (json.dumps(self._decisive(file, step), indent=2, ensure_ascii=False) + "\n").encode())
        reader.read_on()
        return {key: answered.tokens for key, answered in reader.found.items()}

    def _generate(self, file: EvaluationFile, out: Path, there: Mapping[Key, int]) -> None:
        engine, renderer, sampling = self._engine(), self._run.renderer, self.settings.rollout
        self._run.optimization.weights_ready()
        engine.refresh()
        writer = ResponseWriter(out, dist.get_rank(), file.problems) if tensor_parallel_first() else None
        finished = writer.write if writer else lambda _: None
        problems, prompts, samples, seed = file.problems, file.prompts, self._config.samples, self._config.seed
        with writer or nullcontext():
            answer_problems(engine, renderer, problems, prompts, samples, sampling, seed, there, finished, greedy=False)

    def _engine(self) -> RolloutEngine:
        """The run's vLLM; or the training engine, with no more responses at once than an update has."""
        if self.settings.engine.name == "vllm":
            return self._run.engine
        ranks = data_parallel_place()[1] * context_place()[1]
        batch = self.settings.engine.batch or -(-self.settings.data.batch // ranks)
        settings = replace(self.settings, engine=replace(self.settings.engine, batch=batch))
        return build_engine(settings, self._run.model, self._run.renderer, self._run.hf_folder)

    def _write(self, file: EvaluationFile, step: int, graded: Graded | None) -> Figures:
        assert graded is not None, "rank 0 has graded"
        figures = {
            **graded.figures,
            **graded.faults,
            "protocol": None,
            "model": str(self._model_folder(step)),
            "data": str(file.path),
            "seed": self._config.seed,
            "rollout": asdict(self.settings.rollout),
            "engine": self.settings.engine.name,
        }
        finish(evaluation_folder(self._dir, file, step), graded.answered, graded.right, file.problems, figures)
        return figures

    def _decisive(self, file: EvaluationFile, step: int) -> Decisive:
        return decisive(self._run.config, file, self._model_folder(step))

    def _model_folder(self, step: int) -> Path:
        """Where the weights are that are evaluated."""
        return self._dir / "checkpoints" / f"step_{step}" if step else Path(self._run.config.model.path)


def _graded(file: EvaluationFile, answered: Sequence[Answered], opening: str) -> Graded:
    grader = job_grader()
    timeouts, crashes = grader.timeouts, grader.crashes
    right = grader.grade([(opening + a.text, file.problems[a.problem].answer) for a in answered])
    figures = figures_of(file.problems, answered, right, grader.same, opening)
    return Graded(answered, right, figures, {"grading_timeouts": grader.timeouts - timeouts, "grading_crashes": grader.crashes - crashes})


def metrics_of(figures: Figures) -> dict[str, float]:
    """The metrics eval/<file>/… of one evaluation, without their prefix."""
    low, high = figures["ci95"]
    return {
        "average_at_k": figures["average_at_k"],
        "ci_low": low,
        "ci_high": high,
        "pass_at_k": figures["pass_at"][str(figures["samples"])],
        "answered": figures["with_answer"],
        "truncated": figures["truncated"],
        "loops": figures["loops"],
        "length": figures["mean_tokens"],
    }
