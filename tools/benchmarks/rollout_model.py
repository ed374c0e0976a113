"""A random Qwen3 model whose prompts decide how long its responses are: every engine has the same number of tokens to generate.

Among the random weights a few are written. Prompts begin with marks, tokens that carry powers of two in one dimension of their
embedding. The first head of the first layer looks at all positions alike, and so writes the marks' sum over the number of positions.
That falls as the response grows. Where it falls below a constant that all tokens carry, the logit of the stop token passes all
others, within one token and whatever the sampling; in bf16 a few tokens early or late. All else is that of random weights.
"""

import math
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.nn.functional import normalize

from benchmarks.workload import END, PAD, SPECIAL_IDS, WEIGHT_STD, Workload, random_model

CONSTANT, AVERAGE, MARK = range(3)  # dimensions of the hidden states
MARKS = 11  # ids from SPECIAL_IDS on; the k-th counts for 2^k half positions
WORDS = SPECIAL_IDS + MARKS  # the first id of a token without a meaning
MOST_POSITIONS = 2 ** (MARKS - 1)  # positions of prompt and response that marks can ask for
STOP_WEIGHT, NORM_WEIGHT = 2000.0, 400.0  # the stop token's logit moves by more than 10 within half a position of MOST_POSITIONS / 2


def save_rollout_model(workload: Workload, folder: Path, seed: int) -> None:
    """The model and its tokenizer, in Hugging Face format."""
    model = random_model(workload, seed)
    with torch.no_grad():
        _write_tokens(model)
        _write_average(model)
    model.save_pretrained(folder)
    _tokenizer(workload.vocabulary).save_pretrained(folder)


def marked_prompt(length: int, response: int, vocabulary: int, draw: Random) -> list[int]:
    """`length` token ids, MARKS or more, after which a response has `response` tokens, the stop token among them."""
    assert length >= MARKS, length
    assert length + 2 <= length + response <= MOST_POSITIONS, response
    half_positions = 2 * (length + response) - 3  # half a position before the one from which the stop token is to be sampled
    marks = [SPECIAL_IDS + k for k in range(MARKS) if half_positions >> k & 1]
    return [*marks, *(draw.randrange(WORDS, vocabulary) for _ in range(length - len(marks)))]


def _write_tokens(model: Any) -> None:
    """The rows of the embedding and the head. All rows of the embedding that are ever read have the same norm."""
    norm = WEIGHT_STD * math.sqrt(model.config.hidden_size)
    for weight_VH in {model.model.embed_tokens.weight, model.lm_head.weight}:  # one and the same where they are tied
        weight_VH[:, [CONSTANT, AVERAGE, MARK]] = torch.tensor([_constant(model), 0.0, 0.0])
        weight_VH[[PAD, *range(SPECIAL_IDS, WORDS)], CONSTANT] = -norm / 2  # so that they are never sampled
        weight_VH[SPECIAL_IDS:WORDS, MARK] = norm / 2 * 2.0 ** torch.arange(1 - MARKS, 1)
        rest_V = (norm**2 - weight_VH[:, : MARK + 1].square().sum(dim=1)).sqrt()
        weight_VH[:, MARK + 1 :] = rest_V[:, None] * normalize(weight_VH[:, MARK + 1 :])
        weight_VH[END] = 0.0
        weight_VH[END, CONSTANT], weight_VH[END, AVERAGE] = STOP_WEIGHT, -STOP_WEIGHT
    model.model.norm.weight[[CONSTANT, AVERAGE]] = NORM_WEIGHT


def _write_average(model: Any) -> None:
    """The first head of the first layer: AVERAGE equals CONSTANT where there are as many positions as the marks ask for."""
    config, first = model.config, model.model.layers[0].self_attn
    for layer in model.model.layers:
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight[[CONSTANT, AVERAGE, MARK]] = 0.0
    first.q_proj.weight[: config.head_dim] = 0.0
    first.v_proj.weight[0] = 0.0
    first.v_proj.weight[0, MARK] = 1.0
    norm = WEIGHT_STD * math.sqrt(config.hidden_size)
    root_mean_square = math.sqrt(WEIGHT_STD**2 + config.rms_norm_eps)
    mean_at_stop = norm / root_mean_square * 2.0 ** (1 - MARKS)
    first.o_proj.weight[:, 0] = 0.0
    first.o_proj.weight[AVERAGE, 0] = _constant(model) / mean_at_stop


def _constant(model: Any) -> float:
    return 0.1 * WEIGHT_STD * math.sqrt(model.config.hidden_size)


def _tokenizer(vocabulary: int) -> Any:
    """Token i is the word of its number; the stop token ends a turn."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": PAD, "<eos>": END}
    tokenizer = Tokenizer(models.WordLevel(special | {str(i): i for i in range(SPECIAL_IDS, vocabulary)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = "{% for message in messages %}{{ message.content }}<eos>{% endfor %}{% if enable_thinking %} {% endif %}"
    return fast
