"""Every recipe is usable as it is, and the launcher starts in all its forms."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from megatron.core.optimizer import OptimizerConfig

from megatron_atesd.config import LoraConfig, ModelShape, TrainConfig, build_section, load_config, validate
from tests.support.patience import PATIENCE
from tests.support.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "examples" / "atesd_qwen3_8b.sh"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]

# Heads, key/value heads, layers, width and positions of the published config.json of each size.
QWEN3 = {
    "1.7b": ModelShape(heads=16, query_groups=8, layers=28, ffn=6144, max_positions=40960),
    "4b": ModelShape(heads=32, query_groups=8, layers=36, ffn=9728, max_positions=40960),
    "8b": ModelShape(heads=32, query_groups=8, layers=36, ffn=12288, max_positions=40960),
}
QWEN3_RECIPES = [path for path in RECIPES if "_qwen3_" in path.name]
LORA_RECIPES = [path for path in QWEN3_RECIPES if path.stem.endswith("_lora")]
PAPER_RECIPES = [path for path in QWEN3_RECIPES if not path.name.startswith("aligned")]


def settings(recipe: Path, folder: Path) -> TrainConfig:
    """The recipe, with paths that exist."""
    problems = folder / "problems.jsonl"
    problems.touch()
    config = load_config(["--config", str(recipe)])
    data = replace(config.data, train=str(problems), probe=str(problems))
    return replace(config, model=replace(config.model, path=str(folder)), data=data)


def size_of(recipe: Path) -> str:
    return recipe.stem.split("_")[2]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "examples"))


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_every_recipe_keeps_every_rule(recipe: Path, tmp_path: Path):
    config = settings(recipe, tmp_path)
    validate(config, world_size=config.parallel.tensor * config.parallel.pipeline)
    build_section("optimizer", OptimizerConfig, {}, config.optimizer)


@pytest.mark.parametrize("recipe", QWEN3_RECIPES, ids=name_of)
def test_a_qwen3_recipe_fits_its_model_on_eight_gpus_and_one_of_adapters_on_one(recipe: Path, tmp_path: Path):
    for gpus in (8, 1) if recipe in LORA_RECIPES else (8,):
        validate(settings(recipe, tmp_path), world_size=gpus, model=QWEN3[size_of(recipe)])


@pytest.mark.parametrize("recipe", LORA_RECIPES, ids=name_of)
def test_a_recipe_of_adapters_is_the_papers_and_differs_from_its_twin_in_memory_alone(recipe: Path):
    lora, twin = (load_config(["--config", str(path)]) for path in (recipe, recipe.with_name(f"{recipe.stem.removesuffix('_lora')}.yaml")))
    assert (lora.lora.rank, lora.lora.alpha, lora.lora.targets, lora.lora.dropout) == (64, 128, LoraConfig().targets, 0)
    free = {"run": {"dir"}, "parallel": {"tensor", "sequence"}, "engine": {"batch"}, "rollout": {"batch"}, "lora": set(asdict(lora.lora))}
    for section, values in asdict(lora).items():
        theirs = asdict(twin)[section]
        if section != "megatron":
            assert {k: v for k, v in values.items() if k not in free.get(section, ())} == {
                k: v for k, v in theirs.items() if k not in free.get(section, ())
            }, section
    assert all(name.startswith("recompute") for name in lora.megatron)


@pytest.mark.parametrize("recipe", PAPER_RECIPES, ids=name_of)
def test_a_recipe_of_the_papers_has_the_published_settings(recipe: Path):
    config = load_config(["--config", str(recipe)])
    published = {
        "updates": 100, "batch": 32, "tokens": 1024, "temperature": 1.1, "top_p": 0.95, "top_k": 20, "divergence": "forward_kl",
        "clip": 0.06 if size_of(recipe) == "8b" else 0.05, "teacher": "initial", "thinking": (False, True), "lr": 5e-6,
        "clip_grad": 0.1, "clip_mode": "entry",
    }  # fmt: skip
    rollout, distill, prompt = config.rollout, config.distill, config.prompt
    assert published == {
        "updates": config.run.updates,
        "batch": config.data.batch,
        "tokens": rollout.max_new_tokens,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        "divergence": distill.divergence,
        "clip": distill.clip,
        "clip_mode": distill.clip_mode,
        "teacher": distill.teacher,
        "thinking": (prompt.student_thinking, prompt.teacher_thinking),
        "lr": config.optimizer["lr"],
        "clip_grad": config.optimizer["clip_grad"],
    }
    assert distill.temperature is None  # the sampling temperature, on both sides


@pytest.mark.parametrize("size", QWEN3)
def test_the_baseline_differs_from_atesd_in_exposure_alone(size: str):
    atesd, opsd = (load_config(["--config", str(ROOT / "examples" / f"{method}_qwen3_{size}.yaml")]) for method in ("atesd", "opsd"))
    assert (opsd.exposure.mode, opsd.exposure.fixed) == ("fixed", 1.0)
    assert replace(atesd, run=opsd.run, exposure=opsd.exposure) == opsd
    assert replace(atesd.run, dir=opsd.run.dir) == opsd.run


@pytest.mark.parametrize("size", QWEN3)
def test_ours_differs_from_the_papers_in_the_clip_and_the_exposure_alone(size: str):
    paper, ours = (load_config(["--config", str(ROOT / "examples" / f"{method}_qwen3_{size}.yaml")]) for method in ("atesd", "aligned"))
    clipped = replace(paper.distill, clip=0.05, clip_mode="token")
    assert replace(paper, run=replace(paper.run, dir=ours.run.dir), exposure=ours.exposure, distill=clipped) == ours


def start(command: list[str], *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.run(
        [*command, str(LAUNCHER), *arguments],
        cwd=ROOT,
        env=inherited | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("form", [["bash"], TORCHRUN, [*TORCHRUN, "--no-python"]], ids=["bash", "torchrun", "torchrun --no-python"])
def test_every_form_of_start_hands_the_arguments_to_training(form: list[str]):
    result = start(form, "--exposure.holdd", "3", GPUS_PER_NODE="1")
    assert "error: unknown setting --exposure.holdd; did you mean exposure.hold?" in result.stderr
    assert result.returncode != 0


def test_help_of_the_launcher_needs_no_gpu_and_no_torchrun():
    result = start(["bash"], "--help", GPUS_PER_NODE="none")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--exposure.hold VALUE" in result.stdout
