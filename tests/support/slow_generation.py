"""Generation as anyone would write it, and prompts to try it on."""

import torch

from megatron_atesd.config import RolloutConfig
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.vocabulary import whole_logits
from megatron_atesd.rollout.sampling import sample_tokens, uniforms

CONFIG = RolloutConfig(max_new_tokens=12, temperature=1.0, top_p=0.95, top_k=20)
PROMPTS = [[5, 7, 9], [1], [2, 3, 4, 5, 6, 7, 8], [9, 9]]
STOP = 11


def slowly(model: HiddenStateGPT, prompt: list[int], seed: int, config: RolloutConfig) -> list[int]:
    """One token at a time, the whole sequence again each time, no cache, no batch."""
    written: list[int] = []
    device = torch.cuda.current_device()
    with torch.no_grad():
        for step in range(config.max_new_tokens):
            hidden = model(torch.tensor([prompt + written], device=device))
            logits = whole_logits(model, hidden[0, -1:])
            uniform = uniforms([seed], config.max_new_tokens)[:, step].to(device)
            written.append(int(sample_tokens(logits, uniform, config.temperature, config.top_p, config.top_k)))
            if written[-1] == STOP:
                break
    return written
