"""When a training evaluates, what it tells of it, and which checkpoint it ends with.

<run.dir>/eval/<name>/step_N/   settings.json, evaluation.json and responses.jsonl as of tools/evaluate.py; unfinished/ while it goes on
<run.dir>/best.json             with eval.select best, the choice so far

An evaluation is one of a saved checkpoint: a kill amid it costs the responses on their way, and the run goes on with the others.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_atesd.checkpoint.run_checkpoints import Saver, set_aside, step_folders, step_number
from megatron_atesd.evaluate.responses import write_whole
from megatron_atesd.parallel.agreement import on_rank_0
from megatron_atesd.report.monitor import Monitor
from megatron_atesd.report.run_files import read_object
from megatron_atesd.train.evaluation import RESULT, Evaluator, metrics_of
from megatron_atesd.train.evaluation_files import EvaluationFile, evaluation_folder
from megatron_atesd.train.heartbeat import Heartbeat
from megatron_atesd.train.preemption import StopRequest
from megatron_atesd.train.selection import Best, Figures, choose_best, evaluation_line, final_lines, rule, summary
from megatron_atesd.train.training_run import TrainingRun

PATIENCE_MINUTES = 365 * 24 * 60.0  # ranks wait for the longest response; collectives within the making of one keep their own limit


class Evaluations:
    """The evaluations of one run. Without eval.files every verb does nothing. `begin` and `measure` are collective over all ranks."""

    def __init__(self, run: TrainingRun, files: Sequence[EvaluationFile], monitor: Monitor, saver: Saver, heartbeat: Heartbeat) -> None:
        self._files, self._monitor, self._saver, self._heartbeat = files, monitor, saver, heartbeat
        self._config, self._updates, self._dir = run.config.eval, run.config.run.updates, Path(run.config.run.dir)
        self._evaluator = Evaluator(run)
        self._results: dict[int, dict[str, Figures]] = {}
        self._best: Best | None = None

    def due(self, step: int) -> bool:
        """Whether there is an evaluation after update `step` (0: before the first)."""
        every = self._config.every
        return bool(self._files) and (step in (0, self._updates) or (every > 0 and step % every == 0))

    def missing(self, step: int) -> bool:
        """Whether the evaluation after update `step` is due, but not finished."""
        return self.due(step) and len(self._results.get(step, {})) < len(self._files)

    def begin(self, start: int, stop: StopRequest) -> str:
        """Take up what earlier jobs found up to update `start`, from which the run goes on, and finish that evaluation if it is due.

        Later ones are of a course that the run has left: they become step_N.aside. Returns the signal that interrupted, '' for none.
        """
        if not self._files:
            return ""
        self._results = on_rank_0(lambda: self._known(start), f"{self._dir / 'eval'} cannot be put in order")
        self._monitor.message(self._account())
        if self.due(start):
            return self.measure(start, stop)
        self._choose()
        return ""

    def measure(self, step: int, stop: StopRequest) -> str:
        """Evaluate the student after update `step`, and tell it. Returns the signal that came between two files, '' for none.

        What is left out then, a job that goes on from step_<step> does. A checkpoint that could not be saved (checkpoint.on_error) has
        no evaluation.
        """
        self._saver.finish(wait=True)
        if step and not on_rank_0(lambda: (self._dir / "checkpoints" / f"step_{step}").is_dir(), f"{self._dir} cannot be read"):
            self._monitor.message(f"warning: no evaluation after update {step}: its checkpoint could not be saved")
            return ""
        started, results = time.perf_counter(), self._results.setdefault(step, {})
        missing = [file for file in self._files if file.name not in results]
        for file in missing:
            if asked := stop.agreed():
                return asked
            self._heartbeat.enter(f"the evaluation of {file.name} after update {step}", PATIENCE_MINUTES)
            results[file.name] = self._evaluator.evaluate(file, step)
        self._tell(step, time.perf_counter() - started if missing else None)
        self._choose()
        return ""

    def conclude(self) -> dict[str, Any]:
        """Tell what the run ends with; returns the part `eval` of summary.json, {} without evaluations."""
        if not self._files:
            return {}
        self._monitor.message("\n".join(final_lines(self._results, self._updates, self._best, self._config)))
        return {"eval": summary(self._results, self._updates, self._best, self._config)}

    def _known(self, start: int) -> dict[int, dict[str, Figures]]:
        results: dict[int, dict[str, Figures]] = {}
        for file in self._files:
            folder = self._dir / "eval" / file.name
            set_aside(folder, start)
            if start == 0 and not self._evaluator.holds(evaluation_folder(self._dir, file, 0), file, 0):
                set_aside(folder, -1)  # of another run, that has begun here and left no checkpoint
            for there in step_folders(folder):
                if figures := read_object(there / RESULT):
                    results.setdefault(step_number(there), {})[file.name] = figures
        return results

    def _account(self) -> str:
        """What each evaluation costs, and what is going to be the result of the run."""
        samples, files = self._config.samples, self._files
        drawn = samples * sum(len(file.problems) for file in files)
        each = ", ".join(f"{file.name} {len(file.problems)} × {samples}" for file in files)
        often = f", after every {self._config.every} updates" if self._config.every else ""
        longest = self._evaluator.settings.rollout.max_new_tokens
        cost = f"evaluations before the first update{often} and after the last: {drawn:,} responses ({each}) of at most {longest:,} tokens"
        result = f"result by eval.select {self._config.select}: {rule(self._config)}"
        alone = self._config.select == "best" and len(files) == 1
        bias = "; a file that selects is biased upward, so give another one in eval.files that does not" if alone else ""
        return f"{cost}\n{result}{bias}"

    def _tell(self, step: int, seconds: float | None) -> None:
        """Metrics of the update's line, and a line for the console where anything is new."""
        files = {file.name: self._results[step][file.name] for file in self._files}
        metrics = {f"eval/{name}/{key}": value for name, figures in files.items() for key, value in metrics_of(figures).items()}
        if seconds is not None:
            metrics["time/eval"] = seconds
            self._monitor.message(f"{evaluation_line(step, files)}; {seconds:.1f} s")
        self._monitor.log_later(step, metrics)

    def _choose(self) -> None:
        """With eval.select best: choose anew among what is known, keep that checkpoint, and write it down."""
        if self._config.select == "best":
            self._best = on_rank_0(self._chosen, f"{self._dir / 'best.json'} cannot be written")
            self._saver.best = self._best.step if self._best else None

    def _chosen(self) -> Best | None:
        checkpoints = {step_number(folder) for folder in step_folders(self._dir / "checkpoints")}
        best, path = choose_best(self._results, checkpoints, self._config), self._dir / "best.json"
        if best is None:
            path.unlink(missing_ok=True)
        else:
            write_whole(path, (json.dumps(asdict(best), indent=2) + "\n").encode())
        return best
