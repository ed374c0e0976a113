"""vLLM's engine on this rank, started as the trainer needs it."""

import gc
import os
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_atesd.config import TrainConfig
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.rollout.vllm_check import MOST_SEQUENCES, cache_bytes, free_bytes, longest_sequence
from megatron_atesd.rollout.vllm_process import import_vllm, kept_process
from megatron_atesd.rollout.vllm_sampler import Draws, logits_processor

CLASSES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # without torchrun


def start_vllm(config: TrainConfig, model: HiddenStateGPT, hf_folder: Path, draws: Draws) -> Any:
    """vLLM's LLM on this rank, with weights of no meaning. Collective over all ranks; once a process.

    The ranks of one tensor-parallel group are one engine. Raises ConfigError where vLLM refuses to start.
    """
    with kept_process():
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)
        import_vllm()
        from vllm import LLM  # pyright: ignore[reportMissingImports]
        from vllm.distributed.parallel_state import get_tp_group  # pyright: ignore[reportMissingImports]

        _without_named_memory()
        gpu = torch.cuda.is_available()
        try:
            llm = LLM(
                model=str(hf_folder),
                load_format="dummy",
                skip_tokenizer_init=not config.rollout.stop,
                # vLLM's matrix products on the CPU keep a packed copy of a head, which stays as it was when it is tied.
                hf_overrides={"tie_word_embeddings": False, "architectures": [CLASSES[model.arch.family]]},
                dtype=config.model.dtype.replace("fp32", "float32").replace("bf16", "bfloat16"),
                tensor_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
                distributed_executor_backend="external_launcher",
                max_model_len=longest_sequence(config, model.arch),
                max_num_seqs=config.engine.batch or MOST_SEQUENCES,
                kv_cache_memory_bytes=cache_bytes(config, model.arch, free_bytes()),
                enable_prefix_caching=True,  # several samples of a problem have one prompt
                enforce_eager=not gpu,
                enable_sleep_mode=gpu,
                async_scheduling=False,  # every rank schedules alike
                logits_processors=[logits_processor(draws)],
                generation_config="vllm",
                seed=config.run.seed % 2**32,
            )
        except (ValueError, RuntimeError, OSError, SubprocessError) as error:
            reason = " ".join(str(error).split())[:400]
            raise ConfigError(f"engine.name is vllm, but vLLM does not start: {reason}; mend that, or set it to training") from error
        # It would take down process groups at the end of the process, when they are gone, and shared memory that nobody uses.
        llm.llm_engine.engine_core._finalizer.detach()
        get_tp_group().mq_broadcaster = None
        gc.unfreeze()
    return llm


def _without_named_memory() -> None:
    """Tensor-parallel ranks on a CPU talk over gloo: vLLM's shared memory has one name on a machine, also when a killed job left it."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator  # pyright: ignore[reportMissingImports]

    CpuCommunicator._all_group_ranks_share_shm_group_name = lambda self: False
