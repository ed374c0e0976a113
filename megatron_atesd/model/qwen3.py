"""Hugging Face config.json → megatron.core TransformerConfig and this rank's part of the model (dense Qwen3; Llama without scaled RoPE)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_atesd.config import Precision
from megatron_atesd.config_sections import build_section
from megatron_atesd.data.hf_json import read_json_object
from megatron_atesd.errors import ConfigError, ConversionError
from megatron_atesd.model.apex import check_gradient_fusion, find_apex
from megatron_atesd.model.architecture import Architecture, check_numbers, check_sizes
from megatron_atesd.model.chunk import ModelChunk
from megatron_atesd.model.fp8 import fp8_fields
from megatron_atesd.model.layers import CacheSlot

EXTRA_STATE = "_extra_state"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def read_architecture(folder: Path) -> Architecture:
    """Architecture of the Hugging Face model in `folder`.

    Raises ConversionError when there is no config.json, the family is unknown, or it uses a feature that is not supported.
    """
    from transformers import AutoConfig

    config = folder / "config.json"
    if not config.is_file():
        raise ConversionError(f"{folder}: no config.json here; give a Hugging Face model folder")
    values = read_json_object(config)
    if values.get("model_type") not in ("qwen3", "llama"):
        raise ConversionError(f"{config}: model_type {values.get('model_type')!r} is not supported; use qwen3 or llama")
    check_sizes(config, values)
    try:
        hf: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a value of a wrong type raises whatever transformers' own checks raise
        raise ConversionError(f"{config}: not a transformers config: {error}; download it again") from error
    _refuse_unsupported(folder, hf)
    architecture = Architecture(
        family=hf.model_type,
        hidden=hf.hidden_size,
        ffn=hf.intermediate_size,
        layers=hf.num_hidden_layers,
        heads=hf.num_attention_heads,
        query_groups=hf.num_key_value_heads,
        head_size=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        vocabulary=hf.vocab_size,
        max_positions=hf.max_position_embeddings,
        rope_base=_rope(hf).get("rope_theta", 10_000.0),
        norm_eps=hf.rms_norm_eps,
        tied=bool(hf.tie_word_embeddings),
        qk_norm=hf.model_type == "qwen3",
    )
    check_numbers(config, architecture)
    return architecture


def _rope(hf: Any) -> Mapping[str, Any]:
    return getattr(hf, "rope_parameters", None) or {"rope_theta": getattr(hf, "rope_theta", 10_000.0)}


def _refuse_unsupported(folder: Path, hf: Any) -> None:
    rules = {
        "attention_bias": getattr(hf, "attention_bias", False),
        "mlp_bias": getattr(hf, "mlp_bias", False),
        "use_sliding_window": getattr(hf, "use_sliding_window", False),
        "rope scaling": _rope(hf).get("rope_type", "default") != "default",
        "hidden_act other than silu": hf.hidden_act != "silu",
    }
    for feature, present in rules.items():
        if present:
            raise ConversionError(f"{folder / 'config.json'}: {feature} is not supported by this Megatron model; choose a model without it")


def transformer_config(
    arch: Architecture,
    tensor: int,
    pipeline: int,
    sequence: bool,
    dtype: str,
    user: Mapping[str, Any] | None = None,
    virtual_pipeline: int = 1,
    *,
    context: int = 1,
    transformer_engine: bool = False,
    precision: Precision | None = None,
) -> TransformerConfig:
    """TransformerConfig of `arch`; `user` are pass-through fields (section megatron:), which may not contradict what is set here.

    transformer_engine: layers from Transformer Engine (`uses_transformer_engine`). precision: of passes that ask for no other.
    """
    fixed = {
        **_model_fields(arch),
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": pipeline,
        "virtual_pipeline_model_parallel_size": virtual_pipeline if virtual_pipeline > 1 else None,
        "context_parallel_size": context,
        "sequence_parallel": sequence,
        "pipeline_dtype": DTYPES[dtype],
        "params_dtype": DTYPES[dtype],
        "bf16": dtype == "bf16",
        "transformer_impl": "transformer_engine" if transformer_engine else "local",
        **fp8_fields(precision),
        # The delayed recipe reduces its amax in every micro-batch, of which data-parallel ranks may have different numbers.
        "tp_only_amax_red": True,
        "calculate_per_token_loss": True,
        "variable_seq_lengths": True,
    }
    if virtual_pipeline > 1:
        # Batched, a rank's messages forward and backward could mix where both neighbours are one rank (PP = 2).
        fixed |= {"overlap_p2p_comm": True, "batch_p2p_comm": False}
    defaults = {
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "fp8_amax_history_len": 1024,  # as Transformer Engine itself: of a single entry, an empty micro-batch would set the next scale
        "fp8_amax_compute_algo": "max",
        "moe_token_dispatcher_type": "alltoall",  # variable_seq_lengths demands it, even without experts
    }
    config = build_section("megatron", TransformerConfig, fixed, {**defaults, **(user or {})})
    check_gradient_fusion(config.gradient_accumulation_fusion, find_apex())
    _check_chunks(config, arch.layers // (pipeline * virtual_pipeline), virtual_pipeline)
    return config


def _model_fields(arch: Architecture) -> dict[str, Any]:
    return {
        "num_layers": arch.layers,
        "hidden_size": arch.hidden,
        "ffn_hidden_size": arch.ffn,
        "num_attention_heads": arch.heads,
        "num_query_groups": arch.query_groups,
        "kv_channels": arch.head_size,
        "layernorm_epsilon": arch.norm_eps,
        "qk_layernorm": arch.qk_norm,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
    }


def _check_chunks(config: TransformerConfig, layers: int, virtual_pipeline: int) -> None:
    """Raise ConfigError for pass-through fields that do not fit chunks of so many layers, `virtual_pipeline` on a pipeline rank."""
    chunks = config.virtual_pipeline_model_parallel_size or 1
    if chunks != virtual_pipeline:
        raise ConfigError(
            f"megatron.pipeline_model_parallel_layout makes {chunks} model chunks a pipeline rank, but parallel.virtual_pipeline is "
            f"{virtual_pipeline}; set it to {chunks}, or change the layout"
        )
    if config.recompute_granularity == "full" and (config.recompute_num_layers or 0) > layers:
        raise ConfigError(
            f"megatron.recompute_num_layers is {config.recompute_num_layers}, but a model chunk has {layers} layers; give at most {layers}"
        )


class HiddenStateGPT(torch.nn.ModuleList):
    """What this rank holds of a model whose last pipeline stage returns final hidden states: its chunks.

    There is one chunk unless parallel.virtual_pipeline is above 1. Parameters and states go by their names in the whole model.
    packed: micro-batches for it hold their sequences one after the other (parallel.packed).
    """

    def __init__(self, arch: Architecture, config: TransformerConfig, packed: bool = False) -> None:
        slot = CacheSlot()
        super().__init__([ModelChunk(arch, config, index, slot) for index in range(config.virtual_pipeline_model_parallel_size or 1)])
        self.arch, self.config, self.slot, self.packed = arch, config, slot, packed

    @property
    def chunks(self) -> list[ModelChunk]:
        """In the order in which activations pass them."""
        return [cast("ModelChunk", chunk) for chunk in self]

    @property
    def pre_process(self) -> bool:
        """Whether the embedding is here."""
        return self.chunks[0].pre_process

    @property
    def post_process(self) -> bool:
        """Whether the vocabulary projection is here."""
        return self.chunks[-1].post_process

    @property
    def vocab_size(self) -> int:
        """Vocabulary with its padding, over all TP ranks."""
        return self.chunks[0].vocab_size

    def head_weight(self) -> torch.nn.Parameter:
        """The vocabulary projection [V, H] of this TP rank (last pipeline stage only); tied models give the embedding."""
        return self.chunks[-1].head_weight()

    def forward(self, *inputs: Any) -> Tensor:
        """Hidden states [B, S, H] of a model that is whole in this process; a pipeline runs through run_schedule."""
        (chunk,) = self.chunks
        return chunk(*inputs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for chunk in self.chunks:
            for name, parameter in chunk.named_parameters(*args, **kwargs):
                yield chunk.whole_name(name), parameter

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {chunk.whole_name(name): value for chunk in self.chunks for name, value in chunk.state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take over a state with all parameters; raises RuntimeError for other names."""
        rest = dict(state_dict)
        for chunk in self.chunks:
            names = {chunk.whole_name(name): name for name in chunk.state_dict()}
            mine = {local: rest.pop(name) for name, local in names.items() if name in rest}
            missing = chunk.load_state_dict(mine, strict=False).missing_keys
            rest |= {f"{name} is missing": None for name in missing if not name.endswith(EXTRA_STATE)}
        if rest:
            raise RuntimeError(f"state of a model with other names: {', '.join(rest)}")

    def sharded_state_dict(self, prefix: str = "") -> dict[str, Any]:
        """megatron.core's sharded state: its tensors are named and placed in the file the same at every TP × PP × VP.

        Without `_extra_state`: Transformer Engine's are pickles, as many as its version likes (model/fp8.py keeps what matters of them).
        """
        return {
            prefix + chunk.whole_name(name.removeprefix(prefix)): part
            for chunk in self.chunks
            for name, part in chunk.sharded_state_dict(prefix=prefix).items()
            if not name.endswith(EXTRA_STATE)
        }

    @contextmanager
    def computing_in(self, precision: Precision | None) -> Iterator[None]:
        """Passes inside are in `precision`, whatever the model's own is."""
        fields = fp8_fields(precision)
        before = {name: getattr(self.config, name) for name in fields}
        try:
            vars(self.config).update(fields)
            yield
        finally:
            vars(self.config).update(before)

    def weights_changed(self) -> None:
        """FP8 copies of the weights are made anew by the next forward. Pipeline schedules see to that themselves."""
        for chunk in self.chunks:
            chunk.set_is_first_microbatch()

    @contextmanager
    def without_sequence_parallel(self) -> Iterator[None]:
        """Single-token decoding cannot be split along the sequence: SP is off inside, with equal results."""
        names = ("sequence_parallel", "scatter_to_sequence_parallel", "reduce_scatter_embeddings")
        targets = [(m, n) for m in (*self.modules(), self.config) for n in names if getattr(m, n, None) is True]
        for target, name in targets:
            setattr(target, name, False)
        try:
            yield
        finally:
            for target, name in targets:
                setattr(target, name, True)


def build_model(arch: Architecture, config: TransformerConfig, packed: bool = False) -> HiddenStateGPT:
    """This rank's part of the model, on its device, in the parameter dtype; weights are random until loaded."""
    return HiddenStateGPT(arch, config, packed).to(device=torch.cuda.current_device(), dtype=config.params_dtype)
