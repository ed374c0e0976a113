"""The engine that a configuration names, for one model."""

from megatron_atesd.config import TrainConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.rollout.engine import RolloutEngine
from megatron_atesd.rollout.training_engine import TrainingEngine


def build_engine(config: TrainConfig, model: HiddenStateGPT, renderer: PromptRenderer) -> RolloutEngine:
    """See EngineConfig."""
    return TrainingEngine(model, renderer.stop_ids, renderer.id_limit, config.precision.rollout, config.engine, renderer.decode)
