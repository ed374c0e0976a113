"""The engine that a configuration names, for one model."""

from pathlib import Path

from megatron_atesd.config import TrainConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.rollout.engine import RolloutEngine
from megatron_atesd.rollout.training_engine import TrainingEngine
from megatron_atesd.rollout.vllm_engine import VllmEngine


def build_engine(config: TrainConfig, model: HiddenStateGPT, renderer: PromptRenderer, hf_folder: Path) -> RolloutEngine:
    """See EngineConfig; `refresh` comes before the first `generate`. hf_folder: where config.json and the tokenizer are. Collective."""
    if config.engine.name == "vllm":
        return VllmEngine(config, model, renderer, hf_folder)
    return TrainingEngine(model, renderer.stop_ids, renderer.id_limit, config.precision.rollout, config.engine, renderer.decode)
