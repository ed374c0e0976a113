"""The training loop. Read this first: it is the data flow of the whole project.

problems → rollout → exposure → teacher and student prompts → distill step → optimizer → probe → controller → monitors → checkpoint
→ evaluation
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from megatron_atesd.checkpoint.run_checkpoints import Saver, check_fresh, set_aside, start_from
from megatron_atesd.config import TrainConfig, save_config
from megatron_atesd.data.notice import warn
from megatron_atesd.data.summary import segments_account
from megatron_atesd.doctor.examine import examined_processes
from megatron_atesd.exposure.advice import advice
from megatron_atesd.parallel.agreement import on_rank_0
from megatron_atesd.parallel.groups import is_main
from megatron_atesd.parallel.session import end_start, session_of, start_minutes
from megatron_atesd.records import Exposure, Rollout
from megatron_atesd.report.at_end import report_at_end
from megatron_atesd.report.monitor import Monitor
from megatron_atesd.report.phases import account
from megatron_atesd.report.samples import Sample
from megatron_atesd.train.banner import banner
from megatron_atesd.train.bias_check import check_bias, cost, save_record
from megatron_atesd.train.checks import TrainingInputs, check_before_work
from megatron_atesd.train.evaluations import Evaluations
from megatron_atesd.train.health import Health
from megatron_atesd.train.heartbeat import Heartbeat
from megatron_atesd.train.metrics import (
    bin_metrics,
    describe_sample,
    entry_clip_warning,
    length_metrics,
    machine,
    peak_memory_gib,
    rollout_metrics,
    sample_of,
    step_metrics,
    write_summary,
)
from megatron_atesd.train.preemption import StopRequest
from megatron_atesd.train.progress import Finished
from megatron_atesd.train.resume import as_begun, check_resumable
from megatron_atesd.train.sort_problems import sort_problems
from megatron_atesd.train.student_step import student_step
from megatron_atesd.train.training_run import TrainingRun


def train(config: TrainConfig) -> None:
    """Train from `config`, or go on from the newest valid checkpoint of its run directory, to the last update or until asked to stop."""
    inputs = check_before_work(config, int(os.environ.get("WORLD_SIZE", "1")))
    run_dir = Path(config.run.dir)
    checkpoints = run_dir / "checkpoints"
    if config.checkpoint.resume == "never":
        check_fresh(checkpoints)
    with (
        examined_processes(config),
        session_of(config.parallel, config.run.seed),
        Heartbeat(config.parallel.timeout_minutes) as heartbeat,
    ):
        heartbeat.enter("the start", start_minutes(config.parallel))
        chosen = start_from(checkpoints, config.checkpoint.resume)
        if chosen.folder is not None:
            check_resumable(chosen.folder, config, inputs)
            config = as_begun(chosen.folder, config)
        health = Health(config, chosen.folder)
        run = TrainingRun(config, inputs, goes_on=chosen.folder is not None)
        start = 0 if chosen.folder is None else run.load(chosen.folder)
        if config.checkpoint.resume not in ("auto", "never"):
            on_rank_0(lambda: set_aside(checkpoints, start), f"{checkpoints} cannot be put in order")
        if is_main():
            run_dir.mkdir(parents=True, exist_ok=True)
            save_config(config, run_dir / "config.yaml", machine())
        with (
            Monitor(run_dir, config.run.updates, config.monitor, is_main(), start) as monitor,
            StopRequest() as stop,
            Saver(checkpoints, config.checkpoint, monitor.message) as saver,
        ):
            if is_main():
                tell_start(config, inputs, monitor)
            if gathered := run.gather():
                monitor.message(gathered)
            sort_problems(run, monitor.message, heartbeat)
            if chosen.folder is not None:
                monitor.message(f"resumed from {chosen.folder} after {start} updates ({chosen.why})")
            else:
                first_measurements(run, monitor, heartbeat, stop)
            evaluations = Evaluations(run, inputs.evaluation_files, monitor, saver, heartbeat)
            end_start(config.parallel)
            if not make_updates(run, start, monitor, stop, saver, health, evaluations, heartbeat):
                return
        if is_main():
            monitor.message(account(write_summary(run_dir, config, evaluations.conclude())))
            draw_report(config, monitor)


def make_updates(
    run: TrainingRun,
    start: int,
    monitor: Monitor,
    stop: StopRequest,
    saver: Saver,
    health: Health,
    evaluations: Evaluations,
    heartbeat: Heartbeat,
) -> bool:
    """Every update after the first `start`, with what is told, saved and evaluated of it; whether the run came to its end.

    It does not where it was asked to stop. Raises TrainingError, with a checkpoint saved, for too many skipped updates in a row and for an
    alarm of health.stop_on. Collective.
    """
    config, checkpoints = run.config, Path(run.config.run.dir) / "checkpoints"
    if asked := evaluations.begin(start, stop):
        monitor.message(f"stopped by {asked} amid an evaluation; start the same command to go on")
        return False
    for update in range(start, config.run.updates):
        done = update + 1
        shown = bool(config.monitor.samples) and done % config.monitor.samples == 0
        metrics, rollouts = train_step(run, update, heartbeat, monitor.sample if shown else None)
        monitor.log(done, metrics | health.after(done, metrics) | saver.metrics())
        health.tell(monitor.message)
        if shown and monitor.for_people:
            monitor.message(describe_sample(run.renderer, rollouts[0]))
        heartbeat.enter(f"the end of update {done}")
        asked = stop.agreed()
        last = bool(asked) or run.skipped.too_many or health.ends() or done == config.run.updates
        if last or evaluations.due(done) or (config.checkpoint.every and done % config.checkpoint.every == 0):
            saver.save(done, run.state(done), run.hf_folder, last)
        else:
            saver.finish(wait=False)
        if run.skipped.too_many:
            raise run.skipped.error(checkpoints / f"step_{done}", config.run.updates - done)
        if health.ends() and done < config.run.updates:
            on_rank_0(lambda: draw_report(config, monitor), "the report cannot be written")  # the others wait: one that ends kills it
            raise health.error(checkpoints / f"step_{done}")
        if evaluations.due(done) and not asked:
            asked = evaluations.measure(done, stop)
        if asked and (done < config.run.updates or evaluations.missing(done)):
            back = config.checkpoint.resume
            again = "" if back in ("auto", "never") else f", with checkpoint.resume auto instead of {back}"
            monitor.message(f"stopped by {asked} after update {done}: step_{done} is saved; start the same command to go on{again}")
            return False
    return True


def draw_report(config: TrainConfig, monitor: Monitor) -> None:
    """<run.dir>/report.html of the updates so far, unless monitor.report is false."""
    if config.monitor.report:
        report_at_end(Path(config.run.dir), monitor.message)


def tell_start(config: TrainConfig, inputs: TrainingInputs, monitor: Monitor) -> None:
    """What is going to be done, and what is doubtful about it."""
    segments, too_few = segments_account(inputs.problems)
    monitor.message(banner(config, inputs, segments, monitor.width))
    for warning in (too_few, entry_clip_warning(config.distill), advice(config.exposure, config.run.updates)):
        if warning:
            warn(warning)


def first_measurements(run: TrainingRun, monitor: Monitor, heartbeat: Heartbeat, stop: StopRequest) -> None:
    """What is measured of the start model, before the first update."""
    if run.config.exposure.bias_check:
        tell_bias(run, monitor, heartbeat, stop)
    stats, _ = run.probe(Finished(0), Exposure(run.config.exposure.warmup_exposure, -1))
    run.service.observe(stats)
    run.refresh_teacher(stats)


def tell_bias(run: TrainingRun, monitor: Monitor, heartbeat: Heartbeat, stop: StopRequest) -> None:
    """Check the progress signals, which changes nothing of the run, and say what was found, also in <run.dir>/bias_check.json."""
    monitor.message(cost(run))
    check = check_bias(run, heartbeat, stop.agreed)
    if check is None:
        monitor.message("the bias check was stopped")
    else:
        monitor.message("\n".join(check.lines()))
        save_record(check, Path(run.config.run.dir) / "bias_check.json")
    heartbeat.enter("the start", start_minutes(run.config.parallel))


def train_step(
    run: TrainingRun, update: int, heartbeat: Heartbeat, tell: Callable[[Sample], None] | None = None
) -> tuple[dict[str, float], list[Rollout]]:
    """One student update; returns its metrics and this data-parallel rank's rollouts.

    tell: is given the rank's first rollout with the KL of its tokens; None on all ranks or on none.
    """
    started = time.perf_counter()
    heartbeat.enter(f"the rollout of update {update + 1}")
    problems = run.sampler.batch_at(update)
    rollouts = run.rollout(problems, run.sampler.place_at(update))
    rolled = time.perf_counter()
    heartbeat.enter(f"the check of the rollout of update {update + 1}")
    gap = run.logprob_gap(rollouts)
    checked = time.perf_counter()

    heartbeat.enter(f"the choice of exposure for update {update + 1}")
    exposure = run.service.propose(update, lambda: run.alignment(rollouts))
    chosen = time.perf_counter()

    heartbeat.enter(f"the student's step of update {update + 1}")
    step = student_step(run, rollouts, exposure, sampled=1 if tell else 0)
    result = step.result
    run.skipped.count(step.skipped)
    if step.skipped:
        run.keep_batch(update + 1, exposure, rollouts)
    stepped = time.perf_counter()

    heartbeat.enter(f"the probe of update {update + 1}")
    # Of a skipped update the controller hears nothing: it drops the decisions whose look-ahead needs it.
    measured: dict[str, float] = {}
    if not step.skipped:
        stats, measured = run.probe(Finished(update + 1, result, rollouts), exposure)
        measured |= run.service.observe(stats) | run.refresh_teacher(stats)
    finished = time.perf_counter()
    metrics = {
        "exposure/alpha": exposure.alpha,
        "optim/lr": step.lr,
        "optim/grad_norm": step.grad_norm,
        "optim/skipped": float(step.skipped),
        "time/rollout": rolled - started,
        "time/check": checked - rolled,
        "time/exposure": chosen - checked,
        "time/teacher": result.teacher_seconds,
        "time/student": result.student_seconds,
        "time/probe": finished - stepped,
        "time/step": finished - started,
        "perf/tokens_per_second": result.tokens / (finished - started),
        "memory/peak_gib": peak_memory_gib(),
    }
    metrics |= gap | rollout_metrics(rollouts, step.contexts, run.answered, run.renderer.decode)
    metrics |= length_metrics(rollouts) | step_metrics(result) | measured
    if result.by_bin:
        bins = [run.bins.of(rollout.problem) for rollout in rollouts]
        metrics |= bin_metrics(rollouts, step.contexts, run.answered, bins, result.by_bin, exposure)
    if tell and is_main():
        first = rollouts[0]
        alpha, right = exposure.of(run.bins.of(first.problem)), run.answered(first)
        tell(sample_of(run.renderer, update + 1, first, step.contexts[0], alpha, result.token_kl[0], right))
    return metrics, rollouts
