"""What a resumed run may change and what it may not: every setting is guarded unless it is listed, and the model and problems stay."""

import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from megatron_atesd.checkpoint.reading import write_folder
from megatron_atesd.config import ALARMS, TrainConfig, load_config
from megatron_atesd.errors import CheckpointError
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.checks import TrainingInputs, check_before_work
from megatron_atesd.train.resume import FREE, check_resumable, check_unchanged, default_settings, is_free
from megatron_atesd.train.training_run import TrainingRun
from tests.support.small_run import arguments, save_inputs

BEGAN = asdict(TrainConfig())
# Of this project's own settings, all that may change; written out once more, so that nothing becomes free by accident.
MAY_CHANGE = {
    *("run.dir", "run.max_skipped", "model.path", "model.attention"),
    "lora.start",
    *("engine.batch", "engine.cache_gib", "engine.checked"),
    *("parallel.tensor", "parallel.pipeline", "parallel.virtual_pipeline", "parallel.sequence", "parallel.context", "parallel.packed"),
    *("parallel.micro_batch_tokens", "parallel.timeout_minutes", "parallel.start_timeout_minutes"),
    *("data.train", "data.probe", "data.probe_size", "data.on_error"),
    *("distill.chunk", "distill.compile", "distill.teacher_offload", "exposure.bias_check"),
    *("checkpoint.every", "checkpoint.keep", "checkpoint.keep_every", "checkpoint.resume", "checkpoint.on_error", "checkpoint.background"),
    *("monitor.tensorboard", "monitor.figure_every", "monitor.samples", "monitor.report", "monitor.console"),
    *("eval.files", "eval.every", "eval.samples", "eval.seed", "eval.temperature", "eval.top_k", "eval.top_p", "eval.max_new_tokens"),
    *("eval.engine", "eval.thinking"),
    *(f"health.{name}" for name in ("window", "stop_on", *ALARMS)),
}
OWN = [f"{section}.{key}" for section, settings in BEGAN.items() for key in settings]


def changed(name: str, value: Any, config: dict[str, Any] = BEGAN) -> dict[str, Any]:
    section, key = name.split(".")
    new = deepcopy(config)
    new[section][key] = value
    return new


def refusal(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The message, '' when the change is let pass."""
    try:
        check_unchanged(old, new)
    except CheckpointError as error:
        return str(error)
    return ""


def test_every_setting_is_guarded_unless_it_is_listed() -> None:
    let_pass = {name for name in OWN if not refusal(BEGAN, changed(name, "another value"))}
    assert let_pass == MAY_CHANGE


def test_a_setting_that_comes_to_be_is_guarded() -> None:
    assert not is_free("run.some_new_setting")
    assert not is_free("megatron.some_new_setting")


def test_a_run_from_before_the_clip_had_modes_keeps_the_clip_of_entries() -> None:
    old = deepcopy(BEGAN)
    del old["distill"]["clip_mode"]
    assert "distill.clip_mode is token, but the run began with entry" in refusal(old, BEGAN)
    assert refusal(old, changed("distill.clip_mode", "entry")) == ""


def test_a_run_from_before_a_setting_was_renamed_resumes() -> None:
    old = deepcopy(BEGAN)
    del old["engine"]
    old["rollout"]["batch"] = 16
    assert refusal(old, BEGAN) == ""


def test_what_is_listed_exists() -> None:
    names = [f"{section}.{key}" for section, settings in default_settings().items() for key in settings]
    unknown = [pattern for pattern in FREE if not any(is_free(name) and _matches(pattern, name) for name in names)]
    assert unknown == []


def _matches(pattern: str, name: str) -> bool:
    start, _, end = pattern.partition("*")
    return name == pattern or ("*" in pattern and name.startswith(start) and all(part in name[len(start) :] for part in end.split("*")))


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("optimizer.lr", 1e-5, 2e-5, "optimizer.lr is 2e-05, but the run began with 1e-05: set it back, or choose another run.dir"),
        ("optimizer.adam_beta2", 0.95, 0.999, "optimizer.adam_beta2 is 0.999, but the run began with 0.95"),
        ("optimizer.optimizer", "adam", "sgd", "optimizer.optimizer is sgd, but the run began with adam"),
        ("ddp.grad_reduce_in_fp32", True, False, "ddp.grad_reduce_in_fp32 is false, but the run began with true"),
        ("megatron.attention_dropout", 0.0, 0.1, "megatron.attention_dropout is 0.1, but the run began with 0"),
        ("megatron.fp32_residual_connection", False, True, "megatron.fp32_residual_connection is true, but the run began with false"),
        ("model.dtype", "fp32", "bf16", "model.dtype is bf16, but the run began with fp32"),
        ("model.dtype", "bf16", "fp32", "model.dtype is fp32, but the run began with bf16"),
        ("data.batch", 32, 64, "data.batch is 64, but the run began with 32"),
        ("run.seed", 1, 2, "run.seed is 2, but the run began with 1"),
        ("precision.student", None, "fp8_mxfp8", "precision.student is fp8_mxfp8, but the run began with null"),
        ("precision.teacher", None, "bf16", ""),
        ("megatron.recompute_granularity", None, "full", ""),
        ("megatron.pipeline_model_parallel_layout", None, "Et|tL", ""),
        ("megatron.cp_comm_type", "p2p", ["a2a", "p2p"], ""),
        # The two save their states in forms that do not load into each other.
        ("optimizer.use_distributed_optimizer", False, True, "optimizer.use_distributed_optimizer is true, but the run began with false"),
        ("ddp.overlap_param_gather", False, True, ""),
        ("ddp.bucket_size", None, 20000, ""),
    ],
)
def test_a_change(name: str, old: Any, new: Any, said: str) -> None:
    assert refusal(changed(name, old), changed(name, new)).startswith(said)
    assert bool(refusal(changed(name, old), changed(name, new))) == bool(said)


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("optimizer.lr", 5e-6),
        ("optimizer.adam_beta1", 0.9),
        ("ddp.grad_reduce_in_fp32", True),
        ("megatron.hidden_dropout", 0.0),
        ("megatron.attention_softmax_in_fp32", True),
    ],
)
def test_a_default_may_be_spelled_out_and_left_out(name: str, default: Any) -> None:
    spelled, other = changed(name, default), changed(name, not default if isinstance(default, bool) else default + 0.05)
    assert refusal(BEGAN, spelled) == refusal(spelled, BEGAN) == ""
    assert name in refusal(BEGAN, other)
    assert name in refusal(other, BEGAN)


@pytest.mark.parametrize("name", [name for name in OWN if name not in MAY_CHANGE | {"distill.clip_mode"}])
def test_a_run_from_before_there_was_a_setting_had_its_default(name: str) -> None:
    section, key = name.split(".")
    older = deepcopy(BEGAN)
    del older[section][key]
    assert refusal(older, BEGAN) == ""
    assert name in refusal(older, changed(name, "another value"))


def test_a_run_from_before_there_was_a_section_had_its_defaults() -> None:
    older = {section: settings for section, settings in BEGAN.items() if section != "precision"}
    assert refusal(older, changed("precision.student", "bf16")) == ""
    assert "precision.student is fp8_mxfp8" in refusal(older, changed("precision.student", "fp8_mxfp8"))


def test_all_changes_are_named_at_once() -> None:
    both = changed("exposure.hold", 9, changed("distill.teacher", "live"))
    assert refusal(BEGAN, both) == (
        "distill.teacher is live, but the run began with initial; exposure.hold is 9, but the run began with 2: "
        "set them back, or choose another run.dir"
    )


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("mode", ["fixed", "none", "random", "aligned", "target_kl", "linear", "cosine", "step", "learned", "posterior"])
def test_more_updates_only_where_nothing_follows_their_number(mode: str, decay: str) -> None:
    old = changed("exposure.mode", mode, changed("schedule.decay", decay))
    follows = mode not in ("fixed", "none", "random", "aligned", "target_kl")
    cause = f"schedule.decay {decay}" if decay != "constant" else f"exposure.mode {mode}" if follows else ""
    expected = f"run.updates is 999, but the run began with 100, and {cause} depends on it: set it back, or choose another run.dir"
    assert refusal(old, changed("run.updates", 999, old)) == (expected if cause else "")


def test_how_often_a_run_is_evaluated_stays_where_the_best_evaluation_is_chosen() -> None:
    old = changed("eval.select", "best")
    assert refusal(old, changed("eval.every", 7, old)) == (
        "eval.every is 7, but the run began with 50, and eval.select best chooses among the evaluations: "
        "set it back, or choose another run.dir"
    )


@pytest.mark.parametrize(("name", "value"), [("eval.select", "best"), ("eval.select_on", "math")])
def test_the_rule_that_selects_is_declared_before_the_run(name: str, value: str) -> None:
    assert refusal(BEGAN, changed(name, value)).startswith(f"{name} is {value}, but the run began with ")


def test_steps_at_given_updates_do_not_follow_the_number_of_updates() -> None:
    old = changed("exposure.step_at", [50], changed("exposure.mode", "step"))
    assert refusal(old, changed("run.updates", 999, old)) == ""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Inputs of a small run, and its checkpoint step_2, inside a parallel session."""
    inputs = save_inputs(tmp_path_factory.mktemp("inputs"))
    config = load_config(arguments(inputs, inputs / "run", "--parallel.tensor=1"))
    with parallel_session():
        run = TrainingRun(config, check_before_work(config, 1))
        write_folder(inputs / "run" / "step_2", run.state(2), run.hf_folder)
        yield inputs, inputs / "run" / "step_2"


def resumed(inputs: Path, *overrides: str) -> tuple[TrainConfig, TrainingInputs]:
    config = load_config(arguments(inputs, inputs / "run", "--parallel.tensor=1", *overrides))
    return config, check_before_work(config, 1)


def test_another_dtype_is_refused_before_any_weight_is_read(begun: tuple[Path, Path], tmp_path: Path) -> None:
    inputs, step = begun
    for name in ("hf", "weights/common.pt", "weights/metadata.json", "weights/.metadata"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (step / name).is_dir() else shutil.copy)(step / name, tmp_path / name)
    for stored in (step / "weights").glob("*.distcp"):  # as large, and nothing in them
        with (tmp_path / "weights" / stored.name).open("wb") as file:
            file.truncate(stored.stat().st_size)
    check_resumable(tmp_path, *resumed(inputs))
    with pytest.raises(CheckpointError, match=r"^model\.dtype is bf16, but the run began with fp32: set it back, "):
        check_resumable(tmp_path, *resumed(inputs, "--model.dtype=bf16"))


@pytest.mark.parametrize("part", ["train", "probe"])
def test_other_problems_are_refused(begun: tuple[Path, Path], tmp_path: Path, part: str) -> None:
    inputs, step = begun
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join((inputs / f"{part}.jsonl").read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(CheckpointError, match=rf"data\.{part} holds other problems"):
        check_resumable(step, *resumed(inputs, f"--data.{part}={fewer}"))


def test_a_moved_model_is_the_same(begun: tuple[Path, Path], tmp_path: Path) -> None:
    inputs, step = begun
    check_resumable(step, *resumed(inputs, f"--model.path={shutil.copytree(inputs / 'hf', tmp_path / 'moved')}"))


@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json", "config.json"])
def test_another_model_is_refused(begun: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    inputs, step = begun
    other = shutil.copytree(inputs / "hf", tmp_path / "other")
    old = (other / name).read_text() if (other / name).exists() else "{}"
    (other / name).write_text(
        old.replace('"max_position_embeddings": ', '"max_position_embeddings": 1') if name == "config.json" else old + "\n"
    )
    with pytest.raises(CheckpointError, match=rf"^model\.path is {other}, but {name} there is not what the run began with"):
        check_resumable(step, *resumed(inputs, f"--model.path={other}"))


def test_weights_alone_are_no_run(begun: tuple[Path, Path], tmp_path: Path) -> None:
    inputs, _ = begun
    config, given = resumed(inputs)
    run = TrainingRun(config, given)
    write_folder(tmp_path / "model", {"model": run.model.sharded_state_dict(prefix="model.")}, run.hf_folder)
    with pytest.raises(CheckpointError, match="holds weights but no training state"):
        check_resumable(tmp_path / "model", replace(config), given)
