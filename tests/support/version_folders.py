"""Model folders that each version of megatron.core writes and reads, ours and those of its own dist_checkpointing.save."""

from pathlib import Path

import torch
from megatron.core import __version__, dist_checkpointing

from checkpoints_convert import hf_to_megatron, megatron_to_hf
from checkpoints_convert.command import single_process, whole_model
from megatron_atesd.checkpoint.hf_files import copy_hf_files
from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.checkpoint.reading import model_state, read_plain_values
from megatron_atesd.errors import CheckpointError
from megatron_atesd.model.hf_config import read_architecture
from tests.support.convert_models import save_model
from tests.support.launch import run_distributed

MODELS = {"qwen3, tied, fp32": {}, "llama, untied, bf16": {"family": "llama", "tie_word_embeddings": False, "dtype": torch.bfloat16}}
OWN = next(iter(MODELS))
PLAIN = {"run": {"update": 7, "random": [0.5, "text"]}}


def save_models(folder: Path) -> None:
    """folder/<model>, Hugging Face folders."""
    for name, shape in MODELS.items():
        save_model(folder / name, **shape)


def named(_: Path, folder: Path) -> None:
    """folder/version: what this process has, by megatron.core itself."""
    (folder / "version").write_text(__version__)


def converted(inputs: Path, folder: Path) -> None:
    """folder/<model>, Megatron model folders."""
    for name in MODELS:
        run_distributed(hf_to_megatron.main, 1, ["--hf", str(inputs / name), "--out", str(folder / name)])


def exported(_: Path, models: Path, folder: Path) -> None:
    """folder/<model>, Hugging Face folders of the Megatron ones in `models`; the logits are compared, too."""
    for name in MODELS:
        run_distributed(megatron_to_hf.main, 1, ["--megatron", str(models / name), "--out", str(folder / name), "--verify"])


def saved_by_megatron(inputs: Path, folder: Path) -> None:
    """folder/<OWN>: a model folder of which megatron.core wrote weights/, without a part of ours."""
    run_distributed(_save, 1, inputs / OWN, folder / OWN)


def _save(hf: Path, folder: Path) -> None:
    with single_process():
        model = whole_model(read_architecture(hf), "fp32")
        load_hf_weights(model, hf)
        (folder / "weights").mkdir(parents=True)
        dist_checkpointing.save(model_state(model) | PLAIN, str(folder / "weights"))
        copy_hf_files(hf, folder / "hf")


def read_by_us(_: Path, models: Path, folder: Path) -> None:
    """folder/<OWN>: the export of models/<OWN>; folder/plain: its plain values; folder/refusal: what our code says when it refuses it."""
    run_distributed(_read, 1, models / OWN, folder)


def _read(model: Path, folder: Path) -> None:
    try:
        torch.save(read_plain_values(model), folder / "plain")
        megatron_to_hf.main(["--megatron", str(model), "--out", str(folder / OWN)])
    except CheckpointError as error:
        (folder / "refusal").write_text(str(error))
