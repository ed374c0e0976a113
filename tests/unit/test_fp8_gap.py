"""The FP8 comparison on a machine without FP8: another rounding stands in for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import fp8_gap
from benchmarks.fp8_gap import for_comparison, fp8_gaps, gap_table, usable
from megatron_atesd.config import Precision, PrecisionConfig, TrainConfig, load_config
from megatron_atesd.distill.readings import Example
from megatron_atesd.errors import ConfigError
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.checks import check_before_work
from megatron_atesd.train.optimizer import optimizer_settings
from megatron_atesd.train.training_run import TrainingRun
from tests.support.small_run import arguments, save_inputs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingRun]:
    inputs = save_inputs(tmp_path_factory.mktemp("inputs"))
    # Without a clip: above it a loss would hardly move.
    config = load_config(arguments(inputs, inputs / "run", "--parallel.tensor=1", "--distill.clip=0"))
    with parallel_session():
        run = TrainingRun(config, check_before_work(config, 1))
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        yield run


@pytest.fixture(scope="module")
def examples(run: TrainingRun) -> list[Example]:
    return [
        Example(run.renderer.student(p), run.renderer.teacher(p, 1.0).prompt_ids, run.renderer.reference(p)) for p in run.probe_problems
    ]


def test_a_precision_that_changes_nothing_has_no_gap(run: TrainingRun, examples: list[Example]) -> None:
    (gap,) = fp8_gaps(run, examples, ["bf16"])
    assert (gap.student_kl, gap.teacher_kl) == pytest.approx((0, 0), abs=1e-7)
    assert (gap.loss_of_student, gap.loss_of_teacher, gap.loss) == (0, 0, 0)
    assert (gap.gradient_cosine, gap.gradient_norm) == pytest.approx((1, 1), abs=1e-6)


def test_coarser_weights_have_a_gap_where_they_are_used(run: TrainingRun, examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def rounded(precision: Precision | None) -> Iterator[None]:
        """Within a role in FP8 the layers' matrices have three binary digits."""
        layers = [p for name, p in run.model.named_parameters() if "linear" in name and p.dim() == 2]
        before = [p.data for p in layers]
        for p, whole in zip(layers, originals, strict=True):
            p.data = whole if precision is None else whole.to(torch.float8_e4m3fn).to(whole.dtype)
        yield
        for p, data in zip(layers, before, strict=True):
            p.data = data

    originals = [p.data.clone() for name, p in run.model.named_parameters() if "linear" in name and p.dim() == 2]
    monkeypatch.setattr(run.model, "computing_in", rounded)
    (gap,) = fp8_gaps(run, examples, ["fp8_tensorwise"])
    assert 1e-5 < gap.student_kl < 1
    assert 1e-5 < gap.teacher_kl < 1
    assert gap.student_kl != gap.teacher_kl
    assert len({round(change, 9) for change in (gap.loss_of_student, gap.loss_of_teacher, gap.loss, 0.0)}) == 4
    assert 0.5 < gap.gradient_cosine < 0.99999
    assert gap_table([gap], "fp32").row_count == 1


def test_the_delayed_recipe_is_measured_with_scales_of_an_earlier_pass(
    run: TrainingRun, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes, step = [], fp8_gap.distill_step
    monkeypatch.setattr(fp8_gap, "distill_step", lambda *args: (recipes.append(run.model.config.fp8), step(*args)))
    monkeypatch.setattr(fp8_gap, "_measure", lambda *_: SimpleNamespace(loss=1.0, kl=0.0))
    (gap,) = fp8_gaps(run, examples, ["fp8_delayed"])
    assert recipes == [None, "hybrid", "hybrid"]
    assert gap.gradient_norm == pytest.approx(1, abs=1e-4)  # the first of them is not in the second


def test_a_recipes_own_settings_fit_the_comparison(run: TrainingRun) -> None:
    """Gradients are compared whole, whatever shards or hides them in training."""
    overlap = {"overlap_param_gather": True, "overlap_grad_reduce": True}
    config = for_comparison(
        replace(run.config, optimizer={"use_distributed_optimizer": True}, ddp=overlap, precision=PrecisionConfig(rollout="bf16")), 16
    )
    optimizer, ddp = optimizer_settings(torch.bfloat16, config.optimizer, config.ddp, config.schedule)
    assert (optimizer.use_distributed_optimizer, ddp.overlap_param_gather, ddp.overlap_grad_reduce) == (False, False, True)
    assert (config.data.batch, config.precision) == (16, PrecisionConfig())


def test_roles_that_see_the_same_have_no_loss_to_compare(run: TrainingRun) -> None:
    with pytest.raises(ConfigError, match=r"exposure\.mode is none: .* set it to fixed"):
        for_comparison(replace(run.config, exposure=replace(run.config.exposure, mode="none")), 16)


def test_a_recipe_that_section_megatron_does_not_allow_is_refused(run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8_gap, "check_fp8", lambda config, architecture: None)
    edges = {"first_last_layers_bf16": True}
    config = replace(run.config, model=replace(run.config.model, dtype="bf16"), megatron=edges)
    assert usable(config, run.model.arch, []) == ["fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8"]
    with pytest.raises(ConfigError, match="Delayed scaling does not support first / last layer in BF16"):
        usable(config, run.model.arch, ["fp8_delayed"])


def test_without_fp8_there_is_nothing_to_compare(run: TrainingRun) -> None:
    config: TrainConfig = replace(run.config, model=replace(run.config.model, dtype="bf16"))
    with pytest.raises(ConfigError, match="no FP8 recipe can be computed here"):
        usable(config, run.model.arch, [])
    with pytest.raises(ConfigError, match=r"precision\.student is fp8_mxfp8, but Transformer Engine"):
        usable(config, run.model.arch, ["fp8_mxfp8"])
    with pytest.raises(ConfigError, match="--recipes has fp8, must be of fp8_tensorwise, "):
        usable(config, run.model.arch, ["fp8"])


def test_the_command_refuses_before_the_work(run: TrainingRun, tmp_path: Path) -> None:
    from tools.fp8_gap import parse

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["fp8_gap.py", "--problems", "2", "--config", "a.yaml", "--run.seed=3"])
        args, settings = parse()
    assert (args.problems, settings) == (2, ["--config", "a.yaml", "--run.seed=3"])


def test_the_command_takes_a_run_that_gathers_weights_during_passes(run: TrainingRun) -> None:
    """It has no distributed optimizer, which that needs; here it ends where FP8 is missing."""
    from tools.fp8_gap import main

    inputs = Path(run.config.model.path).parent
    sharded = ("--optimizer.use_distributed_optimizer=true", "--ddp.overlap_grad_reduce=true", "--ddp.overlap_param_gather=true")
    settings = arguments(inputs, inputs / "run", "--parallel.tensor=1", "--model.dtype=bf16", *sharded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["fp8_gap.py", *settings])
        with pytest.raises(ConfigError, match="no FP8 recipe can be computed here"):
            main()
