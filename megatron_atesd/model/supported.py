"""Which settings the model's layers can serve on this machine."""

from dataclasses import asdict

from megatron_atesd.config import TrainConfig, fp8_recipe
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.fp8 import products, unavailable
from megatron_atesd.model.spec import uses_transformer_engine


def check_fp8(config: TrainConfig, architecture: Architecture) -> None:
    """Raise ConfigError for FP8 that this machine or the shape of the model's layers does not allow."""
    for name, precision in asdict(config.precision).items():
        if fp8_recipe(precision) is None:
            continue
        where = f"precision.{name} is {precision}"
        if not uses_transformer_engine(config.model):
            raise ConfigError(f"{where}, but Transformer Engine or a GPU is missing here (model.attention te says which); set it to bf16")
        if reason := unavailable(precision):
            raise ConfigError(f"{where}, but this GPU or software does not support it ({reason}); choose another recipe or bf16")
        tensor, multiple = config.parallel.tensor, 32 if precision == "fp8_mxfp8" else 16
        for what, size in products(architecture, tensor).items():
            if size % multiple:
                raise ConfigError(f"{where}, but the {what} is {size} with parallel.tensor {tensor}, no multiple of {multiple}; lower it")


def check_context(config: TrainConfig) -> None:
    """Raise ConfigError for context parallelism in fp32 with Transformer Engine, whose kernels for it are of half precision."""
    if config.parallel.context > 1 and config.model.dtype == "fp32" and uses_transformer_engine(config.model):
        raise ConfigError(
            f"parallel.context is {config.parallel.context} with model.dtype fp32, but Transformer Engine divides attention over ranks in "
            "bf16 only; set model.dtype to bf16, or model.attention to sdpa"
        )
