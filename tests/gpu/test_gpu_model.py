"""On a GPU the model gives transformers' logits, and generation with its cache what whole forward passes give."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.rollout.training_engine import TrainingEngine
from tests.support.gpu_models import built, error, layers, our_logits, save_model, their_logits, token_ids
from tests.support.slow_generation import CONFIG, PROMPTS, STOP, slowly

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with parallel_session():
        yield save_model(tmp_path_factory.mktemp("model"))


def test_fp32_logits_are_those_of_transformers(folder: Path) -> None:
    """TF32 is off by default: what is left is the order of sums, some 1e-7 an operation."""
    ids_BS = token_ids(2, 96)
    assert error(our_logits(built(folder, *layers("sdpa")), ids_BS), their_logits(folder, torch.float32, ids_BS)) < 1e-5


@pytest.mark.parametrize("kind", ["sdpa", "te"])
def test_bf16_logits_are_as_exact_as_those_of_transformers(kind: str, folder: Path) -> None:
    """Both round to 8 bits after each operation, in other places: their errors are alike in size, not equal. A wrong model's is about 1."""
    ids_BS = token_ids(2, 96)
    exact = their_logits(folder, torch.float32, ids_BS)
    ours = our_logits(built(folder, "--model.dtype=bf16", *layers(kind)), ids_BS)
    theirs = their_logits(folder, torch.bfloat16, ids_BS)
    assert error(ours, exact) < 1.5 * error(theirs, exact) < 0.1


@pytest.mark.parametrize(("dtype", "kind", "tolerance"), [("fp32", "sdpa", 1e-4), ("bf16", "sdpa", 0.1), ("bf16", "te", 0.1)])
def test_log_probabilities_of_rollouts_are_those_of_a_whole_pass(dtype: str, kind: str, tolerance: float, folder: Path) -> None:
    """Decoding runs through other kernels: in bf16 each rounds for itself."""
    model = built(folder, f"--model.dtype={dtype}", *layers(kind)).eval()
    config = replace(CONFIG, max_new_tokens=24, min_new_tokens=24)
    for prompt, response in zip(PROMPTS, TrainingEngine(model, [STOP]).generate(PROMPTS, [1, 2, 3, 4], config), strict=True):
        logits = our_logits(model, torch.tensor([[*prompt, *response.ids]], device=torch.cuda.current_device()))[len(prompt) - 1 : -1]
        whole = logits.log_softmax(-1)[torch.arange(24), torch.tensor(response.ids)].cpu()
        assert (torch.tensor(response.logprobs) - whole).abs().mean() < tolerance


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_rollouts_in_fp32_are_those_of_whole_passes(temperature: float, folder: Path) -> None:
    """Other kernels, other last digits: but a token changes only where two are as likely to seven digits."""
    model, config = built(folder, *layers("sdpa")), replace(CONFIG, temperature=temperature)
    responses = TrainingEngine(model, [STOP]).generate(PROMPTS, [10, 11, 12, 13], config)
    assert [list(r.ids) for r in responses] == [slowly(model, p, s, config)[0] for p, s in zip(PROMPTS, [10, 11, 12, 13], strict=True)]
