"""The sizes of one benchmarked step, read from a JSON file, and the model and token ids made from them."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.counts import projections

PAD, END, SPECIAL_IDS = 0, 1, 2  # padding and end of text for those who need them; no drawn token is one of them
WEIGHT_STD = 0.05  # sharp enough that teacher and student differ by more than rounding
OPTIONAL = {"micro_batch": 0}


@dataclass(frozen=True)
class Workload:
    """A Qwen3 model and a batch: each prompt has one reference and one response of exactly the given lengths, in tokens.

    The teacher's prompt is prompt + reference. micro_batch: sequences in one forward pass (0 = all prompts at once).
    """

    name: str
    layers: int
    hidden: int
    heads: int
    query_groups: int
    head_size: int
    ffn: int
    vocabulary: int
    tied: bool
    prompts: int
    prompt_tokens: int
    reference_tokens: int
    response_tokens: int
    micro_batch: int = 0

    @property
    def arch(self) -> Architecture:
        sizes = (self.hidden, self.ffn, self.layers, self.heads, self.query_groups, self.head_size, self.vocabulary, self.teacher_length)
        return Architecture("qwen3", *sizes, rope_base=10_000.0, norm_eps=1e-6, tied=self.tied, qk_norm=True)

    @property
    def tokens(self) -> int:
        """Response tokens of a step (T)."""
        return self.prompts * self.response_tokens

    @property
    def sequences(self) -> int:
        """Sequences in one forward pass."""
        return self.micro_batch or self.prompts

    @property
    def teacher_length(self) -> int:
        """Tokens of one sequence as the teacher reads it, the longer of both."""
        return self.prompt_tokens + self.reference_tokens + self.response_tokens


def load_workloads(path: Path, only: str = "", options: tuple[str, str] = ("--workloads", "--only")) -> list[Workload]:
    """The workloads of a JSON file `{name: {size: value, …}, …}`, or those named in `only` (comma-separated), in that order.

    options: the command's for both, as errors name them. Raises ConfigError naming the file and the entry that cannot be used.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"{options[0]} {path}: cannot be read as JSON ({error}); give a file like tools/benchmarks/workloads.json"
        ) from None
    if not isinstance(entries, dict) or not entries:
        raise ConfigError(f"{options[0]} {path}: must hold an object of workloads by name, as tools/benchmarks/workloads.json does")
    workloads = {name: _workload(name, entry, f"{options[0]} {path}: {name}") for name, entry in entries.items()}
    names = [name for name in only.split(",") if name] or list(workloads)
    for name in names:
        if name not in workloads:
            raise ConfigError(f"{options[1]} names {name!r}, which {path} lacks; choose from {', '.join(workloads)}")
    return [workloads[name] for name in names]


def _workload(name: str, entry: Any, place: str) -> Workload:
    if not isinstance(entry, dict):
        raise ConfigError(f"{place} is {entry!r}, must be an object of sizes")
    sizes = [field.name for field in fields(Workload) if field.name != "name"]
    if unknown := sorted(set(entry) - set(sizes)):
        raise ConfigError(f"{place} has the unknown size {unknown[0]!r}; known are {', '.join(sizes)}")
    if missing := [size for size in sizes if size not in {**OPTIONAL, **entry}]:
        raise ConfigError(f"{place} lacks {missing[0]}; give it")
    for size, value in entry.items():
        _check_size(f"{place}.{size}", size, value)
    workload = Workload(name, **entry)
    _check_together(place, workload)
    return workload


def _check_size(place: str, size: str, value: Any) -> None:
    if size == "tied":
        if not isinstance(value, bool):
            raise ConfigError(f"{place} is {value!r}, must be true or false")
        return
    least = OPTIONAL.get(size, 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{place} is {value!r}, must be a whole number of at least {least}")


def _check_together(place: str, workload: Workload) -> None:
    if workload.heads % workload.query_groups:
        raise ConfigError(f"{place}.heads is {workload.heads}, must be a multiple of query_groups, {workload.query_groups}")
    if workload.head_size % 2:
        raise ConfigError(f"{place}.head_size is {workload.head_size}, must be even: rotary embedding turns pairs")
    if workload.vocabulary <= SPECIAL_IDS:
        raise ConfigError(f"{place}.vocabulary is {workload.vocabulary}, must be more than {SPECIAL_IDS}: so many ids are special")
    if workload.prompts % workload.sequences:
        raise ConfigError(f"{place}.micro_batch is {workload.micro_batch}, must divide prompts, {workload.prompts} (or be 0 for all)")


def draw_ids(workload: Workload, seed: int) -> dict[str, list[list[int]]]:
    """Random token ids, one list for each prompt: `prompts`, `references`, `responses`."""
    draw = torch.Generator().manual_seed(seed)
    lengths = {"prompts": workload.prompt_tokens, "references": workload.reference_tokens, "responses": workload.response_tokens}
    return {
        role: torch.randint(SPECIAL_IDS, workload.vocabulary, (workload.prompts, length), generator=draw).tolist()
        for role, length in lengths.items()
    }


def save_model(workload: Workload, folder: Path, seed: int) -> None:
    """A Qwen3 model with random fp32 weights in Hugging Face format, the common start of all contenders."""
    random_model(workload, seed).save_pretrained(folder)


def save_adapters(workload: Workload, rank: int, path: Path, seed: int) -> None:
    """A [rank, inputs] of every projection, by PEFT's names without its prefix, as PEFT draws it; the common start of all adapters."""
    from safetensors.torch import save_file

    draw, found = torch.Generator().manual_seed(seed), {}
    for layer in range(workload.layers):
        for name, (inputs, _) in projections(workload.arch).items():
            block = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            key = f"model.layers.{layer}.{block}.{name}.lora_A.weight"
            found[key] = torch.nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=5**0.5, generator=draw)
    save_file(found, path)


def random_model(workload: Workload, seed: int) -> Any:
    """A Qwen3ForCausalLM with random fp32 weights, of standard deviation WEIGHT_STD."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=workload.vocabulary,
        hidden_size=workload.hidden,
        intermediate_size=workload.ffn,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.heads,
        num_key_value_heads=workload.query_groups,
        head_dim=workload.head_size,
        tie_word_embeddings=workload.tied,
        max_position_embeddings=workload.teacher_length,
        initializer_range=WEIGHT_STD,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)
