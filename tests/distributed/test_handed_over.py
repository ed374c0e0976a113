"""The comparison after a hand-over: an engine with the model's log-probabilities passes at every layout, another one does not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.errors import TrainingError
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.rollout.engine import Response
from megatron_atesd.rollout.handed_over import check_handed_over
from tests.support.convert_models import save_model
from tests.support.launch import run_distributed

LAYOUTS = {
    "alone": (1, 1, 1, False),
    "TP 2 with SP": (2, 1, 1, True),
    "PP 2": (1, 2, 1, False),
    "CP 2": (1, 1, 2, False),
    "DP 2": (1, 1, 1, False),
}
PROMPTS = [[3, 14, 15], [9], [2, 6, 53, 5, 8]]
IDS = [[7, 9, 3, 2], [33, 4], [1, 1, 5, 8, 2]]


def verdict(folder: Path, layout: tuple[int, int, int, bool], responses: Sequence[Response], changed: Sequence[Response]) -> list[str]:
    """What is said on this rank of an engine with the model's log-probabilities, and where the last rank's engine has others."""
    tensor, pipeline, context, sequence = layout
    said = []
    with parallel_session(tensor, pipeline, context=context):
        arch = read_architecture(folder)
        model = build_model(arch, transformer_config(arch, tensor, pipeline, sequence, "fp32", context=context))
        load_hf_weights(model, folder)
        for answers in (responses, changed):
            try:
                check_handed_over(model, PROMPTS, answers, 8)
                said.append("")
            except TrainingError as error:
                said.append(str(error))
    return said


def of_transformers(folder: Path) -> list[Response]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for prompt, ids in zip(PROMPTS, IDS, strict=True):
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits_TV.log_softmax(dim=-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        found.append(Response(tuple(ids), True, tuple(logprobs.tolist()), len(ids)))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_ranks_refuse_other_log_probabilities_and_only_these(layout: str, tmp_path: Path):
    save_model(tmp_path)
    right = of_transformers(tmp_path)
    # 0.01 nats on the mean of 11 tokens is 0.11 on one of them; a rank of CP 2 judges about half of them.
    wrong = [replace(right[0], logprobs=(right[0].logprobs[0] + 0.11, *right[0].logprobs[1:])), *right[1:]]
    said = run_distributed(verdict, 1 if layout == "alone" else 2, tmp_path, LAYOUTS[layout], right, wrong)
    assert all(first == "" for first, _ in said)
    assert all("the weights did not reach the rollout engine" in second for _, second in said)
    assert len({second for _, second in said}) == 1


def test_a_nan_is_no_agreement(tmp_path: Path):
    save_model(tmp_path)
    right = of_transformers(tmp_path)
    wrong = [replace(right[0], logprobs=(float("nan"), *right[0].logprobs[1:])), *right[1:]]
    (said,) = run_distributed(verdict, 1, tmp_path, LAYOUTS["alone"], right, wrong)
    assert said[0] == ""
    assert "inf nats a token" in said[1]
