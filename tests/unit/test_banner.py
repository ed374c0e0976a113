"""What a training says of itself at its start."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_atesd.config import ExposureConfig, LoraConfig, ParallelConfig, TrainConfig
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.train.banner import adapters_text, exposure_text, layout_text, look_rows, loss_text, model_text, size_text

QWEN3_1_7B = Architecture("qwen3", 2048, 6144, 28, 16, 8, 128, 151936, 40960, 1e6, 1e-6, tied=True, qk_norm=True)


def test_the_model_with_all_weights():
    assert model_text(QWEN3_1_7B, TrainConfig()) == "qwen3, 28 layers, 1.72 B parameters, fp32, all weights"


def test_the_model_with_adapters():
    """Rank 64 on a layer's seven projections: 64 · Σ (inputs + outputs)."""
    parameters = 28 * 64 * (2 * (2048 + 2048) + 2 * (2048 + 1024) + 3 * (2048 + 6144))
    assert adapters_text(QWEN3_1_7B, LoraConfig(rank=64)) == f"adapters of rank 64 ({size_text(parameters)})"
    assert "rank 8 on q_proj, v_proj (" in adapters_text(QWEN3_1_7B, LoraConfig(rank=8, targets=["q_proj", "v_proj"]))


@pytest.mark.parametrize(
    ("parallel", "processes", "on_a_node", "text"),
    [
        ({}, 1, 1, "1 process on CPU: DP 1"),
        ({"tensor": 4, "sequence": True}, 8, 8, "8 processes on CPU: TP 4 × DP 2, sequence-parallel"),
        (
            {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2, "context": 2, "packed": True},
            16,
            8,
            "16 processes on 2 nodes, CPU: TP 2 × PP 2 × VP 2 × CP 2 × DP 2, packed",
        ),
    ],
)
def test_the_layout_names_what_is_divided(parallel: dict[str, Any], processes: int, on_a_node: int, text: str):
    assert layout_text(ParallelConfig(**parallel), processes, on_a_node, "CPU") == text


@pytest.mark.parametrize(
    ("exposure", "text"),
    [
        ({}, "exposure learned on probe_nll, chosen every 2 updates"),
        ({"mode": "aligned", "hold": 1, "bins": 3}, "exposure aligned on probe_nll, chosen each update, in 3 difficulty bins"),
        ({"mode": "target_kl", "target_kl": 0.04}, "exposure target_kl 0.04, chosen every 2 updates"),
        ({"mode": "random"}, "exposure random, chosen every 2 updates"),
        ({"mode": "fixed", "fixed": 0.5}, "exposure fixed at 0.5"),
        ({"mode": "fixed", "bins": 2, "fixed_by_bin": [0.2, 1.0]}, "exposure fixed at 0.2/1"),
        ({"mode": "fixed", "reference": "shuffled"}, "exposure of shuffled references fixed at 1"),
        ({"mode": "cosine"}, "exposure by schedule cosine"),
        ({"mode": "none"}, "who sees what the student sees"),
    ],
)
def test_the_exposure_in_words(exposure: dict[str, Any], text: str):
    assert exposure_text(replace(ExposureConfig(), **exposure)) == text


def test_the_loss_in_words():
    config = TrainConfig(optimizer={"lr": 1e-4})
    assert loss_text(config) == "forward_kl, clip by token at 0.05, mean over tokens; lr 0.0001"
    plain = replace(config, distill=replace(config.distill, clip=0.0, normalize="sequence", target="mix_unaided"), optimizer={})
    assert loss_text(plain) == "forward_kl, no clip, target mix_unaided 0.5, mean over sequences; lr 5e-06"


def test_the_command_of_tensorboard_can_be_copied():
    config = TrainConfig()
    odd = replace(config, run=replace(config.run, dir="my runs/a"))
    assert look_rows(odd)[1:] == [("", "tensorboard --logdir 'my runs/a'")]
    assert look_rows(replace(odd, monitor=replace(odd.monitor, tensorboard=False)))[1:] == []
