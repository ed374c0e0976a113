"""Is the progress signal biased? Some updates at each of several exposures from one state, which comes back bit for bit.

The state waits as a checkpoint in a folder of the run directory, so what comes back is what a resumed run gets, at every layout.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch.distributed as dist

from megatron_atesd.checkpoint.folders import delete
from megatron_atesd.checkpoint.reading import write_folder
from megatron_atesd.evaluate.responses import write_whole
from megatron_atesd.parallel.agreement import on_rank_0
from megatron_atesd.parallel.groups import is_main
from megatron_atesd.parallel.session import start_minutes
from megatron_atesd.records import Exposure, Rollout
from megatron_atesd.train.bias import BiasCheck, Reading
from megatron_atesd.train.finite import check_probe
from megatron_atesd.train.heartbeat import Heartbeat
from megatron_atesd.train.own_responses import OwnResponses, graded
from megatron_atesd.train.progress import Finished, OwnNLL
from megatron_atesd.train.student_step import student_step
from megatron_atesd.train.training_run import TrainingRun

EXPOSURES = (0.0, 0.5, 1.0)
SAMPLES = 4  # responses to each probe problem at each reading of accuracy


def cost(run: TrainingRun, exposures: Sequence[float] = EXPOSURES, lead: int = 0) -> str:
    """What a check of this run does after `lead` updates, for a person who waits for it."""
    exposure, problems = run.config.exposure, len(run.probe_problems)
    own = "" if run.own.right else f" and {exposure.probe_samples * problems} of the start model"
    updates, responses = lead + len(exposures) * exposure.bias_check, (len(exposures) + 1) * SAMPLES * problems
    return f"bias check: {updates} updates, {responses} responses to probe problems{own}; the state waits in {_folder(run)}"


def check_bias(
    run: TrainingRun,
    heartbeat: Heartbeat,
    stopped: Callable[[], object],
    exposures: Sequence[float] = EXPOSURES,
    own: OwnResponses | None = None,
    done: int = 0,
) -> BiasCheck | None:
    """exposure.bias_check updates at each exposure, on the same problems with the same rollout seeds; None when `stopped` says so.

    own: the start model's graded responses, gathered now if None. done: updates that the run has made. Its state is the same afterwards.
    Collective, as `stopped`, which is asked after each update.
    Raises CheckpointError when the state cannot be written or read back, TrainingError when a reading is not finite.
    """
    updates, after, skipped = run.config.exposure.bias_check, dict[float, Reading](), dict[float, int]()
    minutes = start_minutes(run.config.parallel)
    with _kept_state(run) as put_back:
        heartbeat.enter("the bias check's first reading", minutes)
        own = own or run.graded_own()
        before = _reading(run, own, 0)
        for alpha in exposures:
            skipped[alpha] = 0
            for update in range(updates):
                heartbeat.enter(f"update {update + 1} of the bias check at exposure {alpha:g}", minutes)
                skipped[alpha] += _update(run, done + update, alpha)
                if stopped():
                    put_back()
                    return None
            after[alpha] = _reading(run, own, updates)
            put_back()
    return BiasCheck(updates, SAMPLES, before, after, skipped)


def lead_in(run: TrainingRun, heartbeat: Heartbeat, stopped: Callable[[], object], alpha: float, updates: int) -> OwnResponses | None:
    """So many updates of a new run at one exposure, before a check of what comes after them.

    Returns the start model's own responses; None when `stopped` says so, which is asked after each update. Collective.
    """
    own = run.graded_own()
    for update in range(updates):
        heartbeat.enter(f"update {update + 1} before the bias check", start_minutes(run.config.parallel))
        _update(run, update, alpha)
        if stopped():
            return None
    return own


def save_record(check: BiasCheck, path: Path) -> None:
    """Write it as JSON, under its name only when it is complete; on rank 0. Raises CheckpointError. Collective."""
    content = (json.dumps(check.record(), indent=2) + "\n").encode()
    on_rank_0(lambda: write_whole(path, content), f"{path} cannot be written")


def _update(run: TrainingRun, update: int, alpha: float) -> bool:
    """The update after `update` others; whether it was skipped."""
    rollouts = run.rollout(run.sampler.batch_at(update), run.sampler.place_at(update))
    return student_step(run, rollouts, Exposure(alpha, -1)).skipped


def _reading(run: TrainingRun, own: OwnResponses, update: int) -> Reading:
    """All signals of the present weights; accuracy is of responses at places that nothing else of the run has, always the same."""
    losses = {"probe_nll": run.references.measure(Finished(update))[0]}
    if own.correct():
        losses["probe_own"] = OwnNLL(own, run.score).measure(Finished(update))[0]
        losses["probe_margin"] = OwnNLL(own, run.score, run.config.exposure.wrong_weight).measure(Finished(update))[0]
    check_probe({f"the bias check's {name}": value for name, value in losses.items()}, update)
    known = {name: value for name, value in losses.items() if value is not None}
    responses = run.probe_rollouts(SAMPLES, earlier=run.config.exposure.probe_samples + run.config.run.updates + 1)
    return Reading(known, _accuracy(run, responses))


def _accuracy(run: TrainingRun, responses: Sequence[Rollout]) -> tuple[float, ...]:
    """Share right of each probe problem."""
    right = np.reshape(graded(responses, run.renderer), (SAMPLES, len(run.probe_problems)))
    return tuple(right.mean(axis=0).tolist())


@contextmanager
def _kept_state(run: TrainingRun) -> Iterator[Callable[[], None]]:
    """The run's state, on disk while inside; calling what is yielded puts it back. Collective."""
    folder = _folder(run)
    new = on_rank_0(lambda: _make_anew(folder), f"{folder} cannot be made")
    try:
        write_folder(folder / "state", run.state(0), run.hf_folder)

        def put_back() -> None:
            run.load(folder / "state")
            dist.barrier()  # the folder may go: all ranks have read it

        yield put_back
    finally:
        if is_main():
            delete(folder)
            if new:
                with suppress(OSError):  # not empty: others write there too
                    folder.parent.rmdir()


def _folder(run: TrainingRun) -> Path:
    return Path(run.config.run.dir) / "bias_check.partial"


def _make_anew(folder: Path) -> bool:
    """Without what a killed check left there; whether the run directory is new too."""
    delete(folder)
    new = not folder.parent.exists()
    folder.mkdir(parents=True)
    return new
