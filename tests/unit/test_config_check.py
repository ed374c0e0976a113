"""Rules on and between settings: each broken one is named with its value and a way out."""

from pathlib import Path

import pytest

from megatron_atesd.config import ModelShape, TrainConfig, all_settings, load_config, validate
from megatron_atesd.config.bounds import BOUNDS
from megatron_atesd.errors import ConfigError

SHAPE = ModelShape(heads=16, query_groups=8, layers=28, ffn=3072, max_positions=5120)
NO_THINKING = "prompt.teacher_thinking=false"
REFRESHED = ("distill.teacher=refreshed", "exposure.mode=fixed")  # progress is measured after every 10 updates


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    (tmp_path / "problems.jsonl").write_text("")
    file = str(tmp_path / "problems.jsonl")
    return ["--model.path", str(tmp_path), "--data.train", file, "--data.probe", file, "--run.dir", str(tmp_path / "run")]


@pytest.fixture
def refusal(paths: list[str]):
    def refuse(*settings: str, world_size: int = 1, model: ModelShape | None = SHAPE) -> str:
        with pytest.raises(ConfigError) as caught:
            validate(load_config([*paths, *(f"--{setting}" for setting in settings)]), world_size, model)
        return str(caught.value)

    return refuse


@pytest.mark.parametrize(
    ("world_size", "settings"),
    [
        (1, []),
        (4, ["parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true"]),
        (8, ["parallel.tensor=2", "data.batch=8"]),
        (2, ["parallel.pipeline=2", "parallel.virtual_pipeline=7"]),
        (8, ["parallel.tensor=2", "parallel.context=2", "data.batch=2"]),
        (4, ["parallel.tensor=2", "parallel.context=2", "megatron.cp_comm_type=a2a"]),
        (1, ["rollout.temperature=0", "distill.temperature=1"]),
        (1, ["rollout.temperature=0.001"]),
        (1, ["exposure.batch=1", "exposure.advantage=ema"]),
        (1, ["distill.target=mix_unaided", "distill.mix_weight=-0.5"]),
        (1, ["distill.target=mix_unaided", "exposure.mode=fixed", "exposure.fixed=0", "exposure.reference=none"]),
        (1, ["distill.teacher=refreshed", "exposure.progress=probe_accuracy"]),
        (1, [*REFRESHED, "distill.refresh_every=90"]),
        (1, ["distill.target=mix_exposures", "exposure.mode=fixed", "exposure.bins=2", "exposure.fixed_by_bin=[0, 1]"]),
        (1, ["exposure.entropy_floor=-1.5"]),
        (1, ["schedule.decay=wsd", "schedule.decay_updates=30"]),
        (1, ["lora.rank=64", "lora.targets=[o_proj, down_proj]", "lora.dropout=0.1"]),
        (2, ["parallel.tensor=2", "lora.rank=3", "lora.rslora=true", "lora.alpha=1"]),  # TP divides no rank
        (1, ["lora.rank=8", "lora.dtype=fp32", "model.dtype=bf16"]),
        (1, ["run.updates=2"]),
        (1, ["checkpoint.resume=step_100"]),
    ],
)
def test_sound_settings_pass(paths: list[str], world_size: int, settings: list[str]):
    assert validate(load_config([*paths, *(f"--{setting}" for setting in settings)]), world_size, SHAPE) is None


def test_every_number_has_a_bound():
    numbers = {s.name for s in all_settings().values() if s.hint in (int, float, int | None, float | None)}
    assert numbers == set(BOUNDS)


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("run.updates=0", "run.updates is 0, must be 1 or more"),
        ("checkpoint.resume=latest", "checkpoint.resume is latest, must be auto, never, or the name of a checkpoint such as step_100"),
        ("parallel.virtual_pipeline=0", "parallel.virtual_pipeline is 0, must be 1 or more"),
        ("exposure.fixed=1.5", "exposure.fixed is 1.5, must be from 0 to 1"),
        ("exposure.fixed=.nan", "exposure.fixed is nan, must be from 0 to 1"),
        ("exposure.lr=.inf", "exposure.lr is inf, must be greater than 0"),
        ("exposure.entropy_target_end=0", "exposure.entropy_target_end is 0.0, must be below 0"),
        ("exposure.discount=0", "exposure.discount is 0.0, must be greater than 0 and at most 1"),
        ("exposure.lookahead=0", "exposure.lookahead is 0, must be 1 or more"),
        ("rollout.top_p=0", "rollout.top_p is 0.0, must be greater than 0 and at most 1"),
        ("distill.jsd_beta=1", "distill.jsd_beta is 1.0, must be between 0 and 1"),
        ("distill.ema_decay=1", "distill.ema_decay is 1.0, must be 0 or more and below 1"),
        ("distill.temperature=0", "distill.temperature is 0.0, must be 0.001 or more"),
        ("rollout.temperature=1e-40", "rollout.temperature is 1e-40, must be 0 (the most likely token) or 0.001 or more"),
        ("distill.clip=-0.1", "distill.clip is -0.1, must be 0 or more"),
        ("distill.mix_weight=1", "distill.mix_weight is 1.0, must be below 1"),
        ("lora.rank=-1", "lora.rank is -1, must be 0 or more"),
        ("lora.alpha=0", "lora.alpha is 0.0, must be greater than 0"),
        ("lora.dropout=1", "lora.dropout is 1.0, must be 0 or more and below 1"),
        ("distill.mix_exposure=1.5", "distill.mix_exposure is 1.5, must be from 0 to 1"),
    ],
)
def test_a_value_out_of_bounds_is_refused(refusal, setting: str, rule: str):
    assert refusal(setting).startswith(rule)


@pytest.mark.parametrize(
    ("world_size", "settings", "message"),
    [
        (1, ["parallel.sequence=true"], "parallel.sequence is true with parallel.tensor 1"),
        (
            6,
            ["parallel.tensor=2", "parallel.pipeline=2"],
            "parallel.tensor 2 times parallel.pipeline 2 is 4, which does not divide the 6 processes",
        ),
        (
            6,
            ["parallel.tensor=2", "parallel.context=2"],
            "parallel.tensor 2 times parallel.pipeline 1 times parallel.context 2 is 4, which does not divide the 6 processes; "
            "start a multiple of 4 processes or lower one of the three",
        ),
        (3, [], "data.batch is 32, must be a multiple of the 3 data-parallel ranks; 30 or 33 would do"),
        (8, ["data.batch=4"], "data.batch is 4, must be a multiple of the 8 data-parallel ranks; 8 would do"),
        (1, ["parallel.micro_batch_tokens=0"], "parallel.micro_batch_tokens is 0, must be 1 or more"),
        (1, ["rollout.temperature=0"], "rollout.temperature is 0 and distill.temperature is null"),
        (1, ["rollout.min_new_tokens=1025"], "rollout.min_new_tokens is 1025, must not exceed rollout.max_new_tokens 1024"),
        (1, ["rollout.stop=['Q:', '']"], "rollout.stop has an empty text"),
        (1, ["distill.teacher=refreshed", "exposure.progress=train_accuracy"], "but train_accuracy is not measured on held-out problems"),
        (1, ["distill.teacher=refreshed", "exposure.progress=probe_kl"], "but probe_kl is not measured on held-out problems or moves"),
        (1, ["distill.teacher=refreshed", "exposure.bins=2"], "but with exposure.bins 2 each bin has a progress of its own"),
        (
            1,
            ["distill.teacher=refreshed", "distill.refresh_every=100"],
            "distill.refresh_every is 100, and progress is measured after every 1 ",
        ),
        (1, [*REFRESHED, "distill.refresh_every=91"], "distill.refresh_every is 91, and progress is measured after every 10 updates"),
        (1, [*REFRESHED, "exposure.probe_every=100"], "distill.refresh_every is 10, and progress is measured after every 100 updates"),
        (1, ["distill.target=mix_unaided", "exposure.mode=none"], "distill.target is mix_unaided, but with exposure.mode none the teacher"),
        (
            1,
            ["distill.target=mix_exposures", "distill.mix_weight=-0.5"],
            "distill.mix_weight is -0.5, but distill.target mix_exposures mixes probabilities; raise it to 0 or more",
        ),
        (
            1,
            ["distill.target=mix_exposures", "exposure.mode=fixed", "exposure.fixed=0", "exposure.reference=none"],
            "distill.target is mix_exposures, but with exposure.reference none exposures make no difference",
        ),
        (
            1,
            [*("distill.target=mix_unaided", "exposure.mode=fixed", "exposure.fixed=0", "exposure.reference=none", NO_THINKING)],
            "distill.target is mix_unaided, but with exposure.reference none and equal thinking switches both prompts are one",
        ),
        (
            1,
            ["distill.target=mix_exposures", "distill.mix_exposure=0.5", "exposure.mode=fixed", "exposure.fixed=0.5"],
            "distill.mix_exposure is 0.5, the fixed exposure itself",
        ),
        (1, ["exposure.clip_low=0.9", "exposure.clip_high=0.1"], "exposure.clip_low is 0.9, must not exceed exposure.clip_high 0.1"),
        (1, ["exposure.batch=1"], "exposure.batch is 1 with exposure.advantage batch"),
        (
            1,
            ["exposure.entropy_target_start=-0.9"],
            "exposure.entropy_target_end is -0.8, must not exceed exposure.entropy_target_start -0.9",
        ),
        (1, ["exposure.entropy_floor=-0.5"], "exposure.entropy_floor is -0.5, must be below exposure.entropy_target_end -0.8"),
        (1, ["exposure.warmup_updates=100"], "exposure.warmup_updates is 100, must be below run.updates 100"),
        (1, ["schedule.warmup_updates=100"], "schedule.warmup_updates is 100, must be below run.updates 100"),
        (1, ["lora.dropout=0.1"], "lora.dropout is 0.1, but lora.rank is 0, which trains all weights; set lora.rank to 1 or more"),
        (
            1,
            ["lora.rank=4", "lora.targets=[q_proj, lm_head]"],
            "lora.targets is ['q_proj', 'lm_head'], must be one or more of q_proj, k_proj,",
        ),
        (1, ["lora.rank=4", "lora.targets=[]"], "lora.targets is [], must be one or more of q_proj"),
        (1, ["lora.rank=4", "lora.targets=[q_proj, q_proj]"], "lora.targets is ['q_proj', 'q_proj'], where a projection comes twice"),
        (1, ["lora.rank=4", "lora.start=nowhere"], "lora.start is nowhere, which is no folder; give a PEFT folder"),
        (1, ["lora.rank=4", "lora.dtype=bf16"], "lora.dtype is bf16, but model.dtype is fp32; set lora.dtype to null"),
        (1, ["schedule.decay=wsd"], "schedule.decay_updates is 0 with decay wsd"),
        (1, ["schedule.min_lr=1e-3", "optimizer.lr=1e-4"], "schedule.min_lr is 0.001, must not exceed optimizer.lr 0.0001"),
        (1, ["model.path="], "model.path is not set"),
        (1, ["model.path=/no/such"], "model.path is /no/such, which is no folder"),
        (1, ["data.train="], "data.train is not set"),
        (1, ["data.probe=/no/such.jsonl"], "data.probe is /no/such.jsonl, which is no file"),
        (1, ["run.dir="], "run.dir is empty"),
        (3, ["parallel.tensor=3", "data.batch=8"], "parallel.tensor is 3, must divide the model's attention heads (16)"),
        (3, ["parallel.pipeline=3", "data.batch=8"], "parallel.pipeline is 3, must divide the model's 28 layers"),
        (1, ["parallel.virtual_pipeline=2"], "parallel.virtual_pipeline is 2 with parallel.pipeline 1"),
        (
            2,
            ["parallel.pipeline=2", "parallel.virtual_pipeline=4"],
            "parallel.pipeline 2 times parallel.virtual_pipeline 4 is 8, must divide the model's 28 layers; "
            "give a virtual_pipeline that divides 14",
        ),
        (2, ["parallel.context=2", "megatron.cp_comm_type=a2a+p2p"], "megatron.cp_comm_type is a2a+p2p, must be p2p, all_gather or a2a"),
        (
            16,
            ["parallel.context=4", "parallel.tensor=4", "megatron.cp_comm_type=a2a"],
            "megatron.cp_comm_type is a2a, which divides a tensor rank's attention heads and query groups over parallel.context 4; "
            "give a divisor of 2, or p2p",
        ),
        (
            1,
            ["prompt.max_length=4097"],
            "prompt.max_length 4097 plus rollout.max_new_tokens 1024 is 5121, must not exceed the model's 5120 positions",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(refusal, world_size: int, settings: list[str], message: str):
    assert message in refusal(*settings, world_size=world_size)


def test_all_problems_are_reported_at_once(refusal):
    assert refusal("run.updates=0", "rollout.top_p=2") == (
        "2 settings need a change: (1) run.updates is 0, must be 1 or more; (2) rollout.top_p is 2.0, must be greater than 0 and at most 1"
    )


def test_without_a_shape_the_model_rules_wait(paths: list[str]):
    config = load_config([*paths, "--prompt.max_length", "9999"])
    validate(config, 1, None)
    with pytest.raises(ConfigError, match="5120 positions"):
        validate(config, 1, SHAPE)


def test_the_defaults_keep_every_bound():
    with pytest.raises(ConfigError) as caught:
        validate(TrainConfig())
    assert "must be" not in str(caught.value)  # only the paths are missing
