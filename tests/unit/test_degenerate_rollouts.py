"""Updates on responses that no one wants: all empty, all cut, one token long, sampled from NaN; what is refused at the start."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

from megatron_atesd.config import load_config
from megatron_atesd.errors import ConversionError, DataError, TrainingError
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Exposure, Problem, Rollout, TeacherContext
from megatron_atesd.report.samples import Sample
from megatron_atesd.rollout.sampling import Sampler
from megatron_atesd.train.checks import check_before_work
from megatron_atesd.train.heartbeat import Heartbeat
from megatron_atesd.train.loop import train_step
from megatron_atesd.train.metrics import length_metrics, rollout_metrics
from megatron_atesd.train.progress import Finished
from megatron_atesd.train.training_run import TrainingRun
from tests.support.small_run import arguments, save_inputs

NO_STOP = 5


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = save_inputs(tmp_path_factory.mktemp("inputs"))
    with parallel_session():
        yield folder


def start(inputs: Path, *overrides: str) -> TrainingRun:
    config = load_config(arguments(inputs, inputs / "run", "--parallel.tensor=1", *overrides))
    return TrainingRun(config, check_before_work(config, 1))


def first_update(run: TrainingRun) -> tuple[dict[str, float], list[Rollout]]:
    with Heartbeat(run.config.parallel.timeout_minutes) as heartbeat:
        return train_step(run, 0, heartbeat)


def always(token: Callable[[TrainingRun], int], run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Metrics of an update whose student gives nothing but `token`."""
    assert NO_STOP not in run.renderer.stop_ids
    sample = Sampler.sample

    def only(self: Sampler, logits_TV: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ids_T, logprobs_T = sample(self, logits_TV, *rest)
        return torch.full_like(ids_T, token(run)), logprobs_T

    monkeypatch.setattr(Sampler, "sample", only)
    return first_update(run)[0]


def stop(run: TrainingRun) -> int:
    return run.renderer.stop_ids[0]


def test_a_batch_of_empty_responses_trains_on_their_stop_tokens(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = always(stop, start(inputs), monkeypatch)
    assert (metrics["rollout/empty"], metrics["rollout/truncated"], metrics["rollout/length"]) == (1.0, 0.0, 1.0)
    assert metrics["distill/kl"] > 0
    assert metrics["optim/skipped"] == 0.0


def test_a_batch_of_cut_responses_trains_on_all_their_tokens(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = always(lambda _: NO_STOP, start(inputs), monkeypatch)
    assert (metrics["rollout/empty"], metrics["rollout/truncated"], metrics["rollout/length"]) == (0.0, 1.0, 16.0)
    assert metrics["rollout/loops"] == 1.0
    assert metrics["optim/grad_norm"] > 0


def test_a_response_cut_after_its_only_token_is_not_empty(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = always(lambda _: NO_STOP, start(inputs, "--rollout.max_new_tokens=1"), monkeypatch)
    assert (metrics["rollout/empty"], metrics["rollout/truncated"], metrics["rollout/length"]) == (0.0, 1.0, 1.0)


def test_one_of_four_responses_ends_in_a_loop(inputs: Path) -> None:
    """One stops after its repetition, one is cut amid other text, one is too short."""
    responses = [((7,) * 20, True), ((7,) * 20, False), (tuple(range(20)), True), ((7,) * 15, True)]
    rollouts = [Rollout(Problem("1", "", "", ""), (), ids, truncated) for ids, truncated in responses]
    metrics = rollout_metrics(rollouts, [TeacherContext((), 0, 1)] * 4, lambda _: False, lambda _: "")
    assert (metrics["rollout/loops"], metrics["rollout/truncated"]) == (0.25, 0.75)


def test_lengths_are_those_that_a_share_of_the_responses_does_not_exceed(inputs: Path) -> None:
    rollouts = [Rollout(Problem("1", "", "", ""), (), (7,) * length, False) for length in (9, 1, 3, 5, 2, 4, 7, 6, 10, 8)]
    assert length_metrics(rollouts) == {"rollout/length_p10": 1.0, "rollout/length_p50": 5.0, "rollout/length_p90": 9.0}


def test_a_sample_is_the_first_response_with_the_kl_of_its_tokens(inputs: Path) -> None:
    run, told = start(inputs, "--data.batch=1"), list[Sample]()
    run.service.observe(run.probe(Finished(0), Exposure(1.0, -1))[0])
    with Heartbeat(run.config.parallel.timeout_minutes) as heartbeat:
        metrics, rollouts = train_step(run, 0, heartbeat, told.append)
    (sample,) = told
    assert (sample.update, sample.id) == (1, rollouts[0].problem.id)
    assert "".join(sample.tokens).startswith(run.renderer.decode(rollouts[0].response_ids))
    assert sum(sample.kl) == pytest.approx(metrics["distill/kl"] * len(rollouts[0].response_ids))
    assert sample.alpha == metrics["exposure/alpha"]


@pytest.mark.parametrize(("clip", "share"), [("0", 0.0), ("1e-12", 1.0), ("100", 0.0)])
@pytest.mark.parametrize("mode", ["entry", "token"])
def test_a_clip_touches_all_tokens_or_none(clip: str, share: float, mode: str, inputs: Path) -> None:
    metrics, _ = first_update(start(inputs, f"--distill.clip={clip}", f"--distill.clip_mode={mode}"))
    assert (metrics["distill/clipped_tokens"], metrics["distill/clipped_kl"]) == (share, share)


def test_an_update_on_empty_responses_has_finite_metrics(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = always(stop, start(inputs, "--distill.normalize=sequence"), monkeypatch)
    assert [name for name, value in metrics.items() if not math.isfinite(value)] == []


@pytest.mark.parametrize("mode", ["fixed", "none"])
def test_an_update_says_how_many_segments_its_teacher_saw(mode: str, inputs: Path) -> None:
    run = start(inputs, f"--exposure.mode={mode}", "--exposure.fixed=0.5", "--exposure.reveal=floor")
    metrics = first_update(run)[0]
    counts = [len(step_lines(problem)) for problem in run.sampler.batch_at(0)]  # a chain's segments are its steps
    assert metrics["exposure/segments"] == mean(counts)
    assert metrics["exposure/revealed"] == (0 if mode == "none" else mean(count // 2 for count in counts))


def step_lines(problem: Problem) -> list[str]:
    return problem.solution.splitlines()[:-1]


def test_a_student_whose_activations_are_nan_has_its_update_skipped(inputs: Path) -> None:
    run = start(inputs)
    with torch.no_grad():
        run.model.head_weight()[0] = torch.nan
    metrics, rollouts = first_update(run)
    assert metrics["optim/skipped"] == 1.0
    assert all(rollout.response_ids for rollout in rollouts)


def test_a_teacher_whose_activations_are_nan_has_the_update_skipped(inputs: Path) -> None:
    run = start(inputs)
    for weight in run.teacher.weights:
        weight.fill_(torch.nan)
    assert first_update(run)[0]["optim/skipped"] == 1.0


def test_broken_weights_after_an_update_end_the_run(inputs: Path) -> None:
    run = start(inputs)
    exposure = run.service.propose(0)
    with torch.no_grad():
        run.model.head_weight()[0] = torch.nan
    with pytest.raises(TrainingError, match="the probe's NLL is nan after 1 updates"):
        run.probe(Finished(1), exposure)


def test_a_model_with_nan_weights_is_refused_at_the_start(inputs: Path, tmp_path: Path) -> None:
    model = Qwen3ForCausalLM.from_pretrained(inputs / "hf")
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    model.save_pretrained(tmp_path)
    for path in (inputs / "hf").iterdir():
        if not (tmp_path / path.name).exists():
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(ConversionError, match=r"model\.norm\.weight holds NaN or infinite weights"):
        start(inputs, f"--model.path={tmp_path}")


def test_a_problem_longer_than_the_longest_prompt_is_refused_at_the_start(inputs: Path) -> None:
    with pytest.raises(DataError, match=r"problem '.*': its teacher prompt has \d+ tokens, but prompt.max_length is 40"):
        start(inputs, "--prompt.max_length=40")
