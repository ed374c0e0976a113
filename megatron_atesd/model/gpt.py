"""This rank's part of a model whose last pipeline stage returns final hidden states."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_atesd.config import Precision
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.chunk import ModelChunk
from megatron_atesd.model.fp8 import fp8_fields

EXTRA_STATE, ADAPTERS = "_extra_state", ".lora."  # in names of parameters and states


class HiddenStateGPT(torch.nn.ModuleList):
    """What this rank holds of a model whose last pipeline stage returns final hidden states: its chunks.

    There is one chunk unless parallel.virtual_pipeline is above 1. Parameters and states go by their names in the whole model.
    packed: micro-batches for it hold their sequences one after the other (parallel.packed).
    """

    def __init__(self, arch: Architecture, config: TransformerConfig, packed: bool = False) -> None:
        super().__init__([ModelChunk(arch, config, index) for index in range(config.virtual_pipeline_model_parallel_size or 1)])
        self.arch, self.config, self.packed = arch, config, packed

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
        Without adapters (model/trained.py has their state).
        """
        return {
            prefix + chunk.whole_name(name.removeprefix(prefix)): part
            for chunk in self.chunks
            for name, part in chunk.sharded_state_dict(prefix=prefix).items()
            if not name.endswith(EXTRA_STATE) and ADAPTERS not in name
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
