"""Difficulty bins of a real run: how problems are sorted, what is measured of each bin, and what each bin's teacher shows."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest

from megatron_atesd.config import load_config
from megatron_atesd.distill.step import distill_step, measure_step
from megatron_atesd.errors import DataError
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Exposure, Problem, Rollout
from megatron_atesd.train import training_run
from megatron_atesd.train.checks import check_before_work
from megatron_atesd.train.difficulty import DifficultyBins, by_key, field_values
from megatron_atesd.train.heartbeat import Heartbeat
from megatron_atesd.train.loop import train_step
from megatron_atesd.train.progress import Finished
from megatron_atesd.train.sort_problems import sort_problems
from megatron_atesd.train.training_run import TrainingRun
from tests.support.small_run import arguments, save_inputs

FIXED = ("--exposure.mode=fixed", "--exposure.fixed_by_bin=[1.0,0.0]", "--exposure.difficulty=field")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = save_inputs(tmp_path_factory.mktemp("inputs"))
    with parallel_session():
        yield folder


@pytest.fixture
def half_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model solves nothing: call right what begins with an even token."""
    monkeypatch.setattr(training_run, "graded", lambda rollouts, renderer: [rollout.response_ids[0] % 2 == 0 for rollout in rollouts])


def start(inputs: Path, *overrides: str, bins: int = 2) -> tuple[TrainingRun, list[str]]:
    """A run whose problems are sorted, and what it said of that."""
    given = ("--parallel.tensor=1", "--exposure.grounding=off", "--run.updates=2", f"--exposure.bins={bins}", *overrides)
    config = load_config(arguments(inputs, inputs / "run", *given))
    run, said = TrainingRun(config, check_before_work(config, 1)), list[str]()
    run.gather()
    with Heartbeat(5) as heartbeat:
        sort_problems(run, said.append, heartbeat)
    return run, said


def numbers(run: TrainingRun, problems: Any) -> list[int]:
    return [run.bins.of(problem) for problem in problems]


def operations(problem: Problem) -> int:
    return problem.metadata["difficulty"]


def test_a_field_sorts_the_whole_file(inputs: Path) -> None:
    run, said = start(inputs, *FIXED)
    assert run.bins.edges == [3.0]  # of two to six operations, each as often
    for problems in run.bins.files:
        assert numbers(run, problems) == [int(operations(p) > 3) for p in problems]
    counts = [[sum(int(operations(p) > 3) == i for p in problems) for problems in run.bins.files] for i in (0, 1)]
    assert said == [
        f"difficulty bins, easiest first: bin 0 (to 3): {counts[0][0]} training and {counts[0][1]} probe problems; "
        f"bin 1: {counts[1][0]} training and {counts[1][1]} probe problems"
    ]


def test_edges_can_be_given(inputs: Path) -> None:
    run, _ = start(inputs, *FIXED, "--exposure.bin_edges=[4]")
    assert numbers(run, run.probe_problems) == [int(operations(p) > 4) for p in run.probe_problems]


def test_by_nll_the_problems_in_use_are_parted_at_the_middle_of_their_references_mean_nlls(inputs: Path) -> None:
    run, said = start(inputs, "--exposure.mode=aligned", "--exposure.difficulty=nll")
    used = {p.id: p for update in range(2) for p in run.sampler.batch_at(update)}
    nlls = {p.id: run._mean([(run.renderer.student(p), run.renderer.reference(p))]) for p in (*used.values(), *run.probe_problems)}
    middle = median(nlls[id] for id in used)
    assert len(used) == 16 < len(run.bins.files[0])
    for problem in (*used.values(), *run.probe_problems):
        assert run.bins.of(problem) == int(nlls[problem.id] > middle)
    assert said[0] == f"difficulty: the start model reads {16 + len(run.probe_problems)} reference solutions"


@pytest.mark.usefixtures("half_right")
def test_by_pass_rate_the_share_of_wrong_responses_decides(inputs: Path) -> None:
    settings = ("--exposure.difficulty_samples=3", "--exposure.probe_samples=4", "--rollout.max_new_tokens=48")
    run, said = start(inputs, "--exposure.mode=aligned", "--exposure.difficulty=pass_rate", "--exposure.bin_edges=[0.5]", *settings)
    used, wrong = run.sampler.used(2), dict[str, float]()
    responses = [run.shared_rollout(used, first=-len(used) * (sample + 1)) for sample in range(3)]
    assert len({r.response_ids for sample in responses for r in sample}) > 2 * 16  # samples differ
    for sample in zip(*responses, strict=True):
        wrong[sample[0].problem.id] = fmean(not is_right(r) for r in sample)
    own = run.probe_rollouts(4)
    for problem in run.probe_problems:
        wrong[problem.id] = fmean(not is_right(r) for r in own if r.problem.id == problem.id)
    assert {p.id: run.bins.of(p) for p in (*used, *run.probe_problems)} == {id: int(share > 0.5) for id, share in wrong.items()}
    assert said[:3] == [f"difficulty: response {i} of 3 of the start model to each of 16 training problems" for i in (1, 2, 3)]


def is_right(rollout: Rollout) -> bool:
    return rollout.response_ids[0] % 2 == 0 and not rollout.truncated


def test_problems_in_use_are_those_of_all_updates_each_once(inputs: Path) -> None:
    run, _ = start(inputs, bins=1)
    for updates in (1, 2, 3, 5):
        batches = {p.id for update in range(updates) for p in run.sampler.batch_at(update)}
        assert [p.id for p in run.sampler.used(updates)] == [p.id for p in run.bins.files[0] if p.id in batches]


def test_each_bins_teacher_shows_what_its_exposure_says(inputs: Path) -> None:
    run, _ = start(inputs, *FIXED)
    rollouts = run.rollout(run.sampler.batch_at(0), 0)
    shown = [context.prompt_ids for context in run.exposed(rollouts, run.service.propose(0))]
    assert shown == [run.renderer.teacher(r.problem, float(operations(r.problem) <= 3)).prompt_ids for r in rollouts]


def test_a_bins_statistics_of_the_loss_are_those_of_its_examples_alone(inputs: Path) -> None:
    run, _ = start(inputs, *FIXED)
    rollouts = run.rollout(run.sampler.batch_at(0), 0)
    examples = run.examples(rollouts, run.exposed(rollouts, Exposure(0.5, -1, (0.8, 0.3))))
    args = (run.optimization.wrapped, run.model, run.teacher, examples, run.divergence, 128)
    found, plain = distill_step(*args, bins=2), distill_step(*args)
    assert (found.loss, found.kl, found.tokens, plain.by_bin) == (plain.loss, plain.kl, plain.tokens, ())
    for i in range(2):
        mine = [e for e, r in zip(examples, rollouts, strict=True) if run.bins.of(r.problem) == i]
        expected = measure_step(run.model, run.teacher, mine, run.divergence, 64)
        part = found.of_bin(i)
        assert part.tokens == expected.tokens
        names = ("kl", "disagreement", "confidence")
        assert [getattr(part, n) for n in names] == pytest.approx([getattr(expected, n) for n in names], rel=1e-5)


def test_a_bin_without_a_response_has_the_statistics_of_all(inputs: Path) -> None:
    run, _ = start(inputs, *FIXED)
    easy = run.of_bin(run.rollout(run.sampler.batch_at(0), 0), 0)
    examples = run.examples(easy, run.contexts(easy, 1.0))
    result = distill_step(run.optimization.wrapped, run.model, run.teacher, examples, run.divergence, 128, bins=2)
    assert result.by_bin[1].tokens == 0
    assert result.of_bin(1) == result


@pytest.mark.usefixtures("half_right")
@pytest.mark.parametrize("progress", ["probe_nll", "probe_margin", "probe_accuracy", "probe_kl", "train_accuracy", "train_kl"])
def test_a_bins_progress_is_that_of_a_run_which_has_its_problems_alone(inputs: Path, progress: str) -> None:
    settings = (f"--exposure.progress={progress}", "--exposure.probe_samples=3", "--rollout.max_new_tokens=48")
    run, _ = start(inputs, *FIXED, *settings)
    plain, _ = start(inputs, "--exposure.mode=fixed", *settings, bins=1)
    rollouts = run.rollout(run.sampler.batch_at(0), 0)
    examples = run.examples(rollouts, run.contexts(rollouts, 1.0))
    result = distill_step(run.optimization.wrapped, run.model, run.teacher, examples, run.divergence, 128, bins=2)
    stats, metrics = run.probe(Finished(2, result, rollouts), Exposure(0.5, -1, (1.0, 0.0)))
    whole = plain.probe(Finished(2, result, rollouts), Exposure(0.5, -1))[0]
    assert stats.probe_nll == pytest.approx(whole.probe_nll, rel=1e-6)
    for i in range(2):
        alone, _ = start(inputs, "--exposure.mode=fixed", *settings, bins=1)
        problems = [p for p in alone.probe_problems if int(operations(p) > 3) == i]
        alone.own.right = alone.own.of_problems(problems).right
        alone.own.rollouts = [r for r in alone.own.rollouts if r.problem in problems]
        own, references = alone.own, alone._reference_nll(problems)
        signal = alone._progress_signal(own, references, lambda drawn, problems=problems: [r for r in drawn if r.problem in problems])
        mine = [r for r in rollouts if int(operations(r.problem) > 3) == i]
        expected = signal.measure(Finished(2, result.of_bin(i), mine))[0]
        assert stats.by_bin[i].progress == pytest.approx(expected, rel=1e-6)
        assert metrics[f"bin{i}/probe/progress"] == stats.by_bin[i].progress
        assert stats.by_bin[i].exposure == Exposure(1.0 - i, -1)
        assert stats.by_bin[i].kl == result.by_bin[i].kl
    assert stats.by_bin[0].progress != stats.by_bin[1].progress


def test_each_bin_is_scored_on_its_own_problems(inputs: Path) -> None:
    settings = ("--exposure.mode=aligned", "--exposure.progress=probe_nll", "--exposure.grid=3", "--exposure.score_share=1")
    run, _ = start(inputs, *settings, "--exposure.difficulty=field")
    rollouts = run.rollout(run.sampler.batch_at(0), 0)
    found = run.alignment(rollouts)
    assert found is not None
    plain, _ = start(inputs, *settings, bins=1)
    for i in range(2):
        plain.progress = plain._reference_nll([p for p in plain.probe_problems if int(operations(p) > 3) == i])
        expected = plain.alignment([r for r in rollouts if int(operations(r.problem) > 3) == i])
        assert found[3 * i : 3 * i + 3] == pytest.approx(expected, rel=1e-5)
    scores = run.alignment(run.of_bin(rollouts, 1))
    assert scores is not None
    assert [score == score for score in scores] == [False] * 3 + [True] * 3  # NaN where a bin has no rollout


def test_an_update_tells_of_each_bin(inputs: Path) -> None:
    run, _ = start(inputs, *FIXED)
    run.service.observe(run.probe(Finished(0), Exposure(1.0, -1))[0])
    with Heartbeat(5) as heartbeat:
        metrics, rollouts = train_step(run, 0, heartbeat)
    easy = [operations(r.problem) <= 3 for r in rollouts]
    assert [metrics[f"bin{i}/exposure/alpha"] for i in range(2)] == [1.0, 0.0]
    assert metrics["exposure/alpha"] == fmean(easy)
    counts = [operations(r.problem) for r, mine in zip(rollouts, easy, strict=True) if mine]
    assert (metrics["bin0/exposure/revealed"], metrics["bin0/exposure/segments"]) == (fmean(counts), fmean(counts))
    assert metrics["bin1/exposure/revealed"] == 0
    assert metrics["bin0/distill/kl"] != metrics["bin1/distill/kl"]
    assert {"bin0/rollout/accuracy", "bin1/rollout/accuracy"} <= set(metrics)


def test_what_a_checkpoint_keeps_is_taken_over(inputs: Path) -> None:
    run, _ = start(inputs, "--exposure.mode=aligned", "--exposure.difficulty=nll")
    again = DifficultyBins(run.bins.files)
    again.load_state_dict(run.bins.state_dict())
    assert again == run.bins
    assert DifficultyBins(run.bins.files).state_dict() == {}


def test_a_bin_without_problems_is_refused() -> None:
    train, probe = ([Problem(f"{name}-{i}", f"{name} {i}", "", "") for i in range(3)] for name in ("train", "probe"))
    config = load_config(["--exposure.bins=2"]).exposure
    with pytest.raises(DataError, match=r"difficulty bin 1 of 2 has no problem of data\.probe \(the bins end at \[0\.1\]\)"):
        DifficultyBins((train, probe)).sort(config, by_key(train, [0.1, 0.2, 0.3]), by_key(probe, [0.0, 0.1, 0.1]))


@pytest.mark.parametrize("value", [None, "hard", True, float("inf")])
def test_a_problem_without_a_number_is_named(value: object) -> None:
    problems = [Problem("a", "a", "", "", {"level": 1}), Problem("b", "b", "", "", {"level": value} if value else {})]
    with pytest.raises(DataError, match=r"problem 'b': exposure\.difficulty is field, but its `level` is .*, must be a number"):
        field_values(problems, "level")


def test_a_file_without_the_field_is_refused_before_the_model_is_loaded(inputs: Path) -> None:
    config = load_config(arguments(inputs, inputs / "run", *FIXED, "--exposure.bins=2", "--exposure.difficulty_field=levle"))
    with pytest.raises(DataError, match="levle"):
        check_before_work(config, 2)
