"""What a path means: a Hugging Face folder, a Megatron model folder, a run directory; also a run whose model was exported into its hf/."""

import json
import shutil
from pathlib import Path

import pytest

from checkpoints_convert import hf_to_megatron, megatron_to_hf
from checkpoints_convert.command import single_process
from megatron_atesd.checkpoint.model_folder import find_hf, find_model_folder
from megatron_atesd.config import ModelConfig, TrainConfig
from megatron_atesd.doctor.machine import read_model
from megatron_atesd.errors import CheckpointError, ConversionError
from tests.support.convert_models import read_tensors, save_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hf/, megatron/, and run/ with the checkpoints step_1 and step_2 and an export in run/hf."""
    folder = tmp_path_factory.mktemp("made")
    with single_process():
        hf_to_megatron.convert(save_model(folder / "hf"), folder / "megatron")
        for name in ("step_1", "step_2"):
            shutil.copytree(folder / "megatron", folder / "run" / "checkpoints" / name)
        megatron_to_hf.convert(folder / "run" / "checkpoints" / "step_2", folder / "run" / "hf")
    return folder


@pytest.mark.parametrize(
    ("given", "description"),
    [
        ("hf", "hf"),
        ("megatron", "megatron/hf"),
        ("run/checkpoints/step_1", "run/checkpoints/step_1/hf"),
        ("run/hf", "run/hf"),
    ],
)
def test_where_a_model_is_described(made: Path, given: str, description: str):
    assert find_hf(made / given) == made / description


@pytest.mark.parametrize("given", ["run", "run/checkpoints"])
def test_a_run_directory_is_no_model_although_its_export_is_one(made: Path, given: str):
    with pytest.raises(CheckpointError, match=r"a run directory, not a model; give one of its checkpoints, such as .*step_2"):
        find_hf(made / given)


def test_the_refusal_of_a_run_directory_offers_the_export(made: Path):
    with pytest.raises(CheckpointError, match=f"step_2, or the exported {made}/run/hf$"):
        find_hf(made / "run")


def test_a_run_directory_without_checkpoints_is_no_model_either(made: Path, tmp_path: Path):
    shutil.copytree(made / "run" / "hf", tmp_path / "run" / "hf")
    with pytest.raises(CheckpointError, match=f"neither a Hugging Face folder .*, or the exported {tmp_path}/run/hf$"):
        find_hf(tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ("megatron", "megatron"),
        ("run", "run/checkpoints/step_2"),
        ("run/checkpoints", "run/checkpoints/step_2"),
        ("run/checkpoints/step_1", "run/checkpoints/step_1"),
    ],
)
def test_which_weights_are_exported_and_evaluated(made: Path, given: str, chosen: str):
    assert find_model_folder(made / given) == made / chosen


@pytest.mark.parametrize("given", ["hf", "run/hf"])
def test_a_hugging_face_folder_needs_no_export(made: Path, given: str):
    with pytest.raises(CheckpointError, match=f"{made / given}: already a Hugging Face folder"):
        find_model_folder(made / given)


def test_a_run_can_be_exported_again_beside_its_export(made: Path, tmp_path: Path):
    run = shutil.copytree(made / "run", tmp_path / "run")
    megatron_to_hf.main(["--megatron", str(run), "--out", str(run / "hf"), "--force"])
    assert read_tensors(run / "hf").keys() == read_tensors(made / "hf").keys()
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "hf"]


def test_converting_a_run_directory_as_a_hugging_face_folder_points_at_its_export(made: Path, tmp_path: Path):
    with pytest.raises(ConversionError, match=f"run: no config.json here; give a Hugging Face model folder, such as {made}/run/hf$"):
        hf_to_megatron.main(["--hf", str(made / "run"), "--out", str(tmp_path / "out")])


def test_the_doctor_says_that_a_run_directory_is_no_model(made: Path):
    size, (finding,) = read_model(TrainConfig(model=ModelConfig(path=str(made / "run"))))
    assert (size, finding.severity) == (0, "error")
    assert finding.what == f"{made / 'run'}: a run directory, not a model"


def test_the_plan_refuses_a_run_directory(made: Path):
    from tools.plan import from_folder

    with pytest.raises(CheckpointError, match="a run directory, not a model"):
        from_folder(str(made / "run"))
    assert from_folder(str(made / "run" / "hf")).layers == json.loads((made / "hf" / "config.json").read_text())["num_hidden_layers"]
