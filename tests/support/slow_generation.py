"""Generation as anyone would write it, and prompts to try it on."""

import numpy as np
import torch

from megatron_atesd.config import RolloutConfig
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.vocabulary import whole_logits
from megatron_atesd.rollout.sampling import uniforms

CONFIG = RolloutConfig(max_new_tokens=12, temperature=1.0, top_p=0.95, top_k=20)
PROMPTS = [[5, 7, 9], [1], [2, 3, 4, 5, 6, 7, 8], [9, 9]]
STOP = 11


def slowly(model: HiddenStateGPT, prompt: list[int], seed: int, config: RolloutConfig, stop: int = STOP) -> tuple[list[int], list[float]]:
    """Ids and their log-probabilities: one token at a time, the whole sequence again each time, no cache, no batch."""
    written: list[int] = []
    logprobs: list[float] = []
    device = torch.cuda.current_device()
    with torch.no_grad():
        for step, uniform in enumerate(uniforms(seed, config.max_new_tokens)):
            hidden = model(torch.tensor([prompt + written], device=device))
            logits = whole_logits(model, hidden[0, -1:])[0].double().cpu().numpy() / (config.temperature or 1.0)
            banned = [stop] if step < config.min_new_tokens else []
            kept = kept_probabilities(logits, config, banned)
            token = draw(kept, uniform, in_order_of_ids=keeps_all(config))
            written.append(token)
            logprobs.append(float(logits[token] - np.logaddexp.reduce(logits)))
            if token == stop:
                break
    return written, logprobs


def keeps_all(config: RolloutConfig) -> bool:
    return config.temperature > 0 and config.top_k == 0 and config.top_p == 1 and config.min_p == 0


def kept_probabilities(logits: np.ndarray, config: RolloutConfig, banned: list[int]) -> np.ndarray:
    """Of each id [V], summing to 1: top-k, then top-p among them, then min-p; greedy is all on one. logits: tempered."""
    logits = logits.copy()
    logits[banned] = -np.inf
    order = np.argsort(-logits, kind="stable")
    if config.temperature == 0:
        return np.eye(len(logits))[order[0]]
    order = order[: config.top_k or len(logits)]
    share = np.exp(logits[order] - np.logaddexp.reduce(logits[order]))
    before = np.cumsum(share) - share
    share[(before >= config.top_p) | (share < config.min_p * share[0])] = 0
    result = np.zeros(len(logits))
    result[order] = share / share.sum()
    return result


def draw(probabilities: np.ndarray, uniform: float, in_order_of_ids: bool) -> int:
    """Inverse CDF, over the ids as they are or the most likely first."""
    order = np.arange(len(probabilities)) if in_order_of_ids else np.argsort(-probabilities, kind="stable")
    return int(order[np.searchsorted(np.cumsum(probabilities[order]), uniform, side="right")])
