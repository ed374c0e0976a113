"""Pass-through sections: megatron.core's own dataclasses, with our refusals."""

from dataclasses import dataclass

import pytest
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig

from megatron_atesd.config import build_section, naming_section
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.megatron_config import transformer_config

SHAPE = {"num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "tensor_model_parallel_size": 1, "bf16": False}
ARCH = Architecture("qwen3", 32, 48, 4, 4, 2, 16, 21, 64, 1e4, 1e-6, tied=True, qk_norm=True)


def refusal(user: dict[str, object], cls: type = TransformerConfig, name: str = "megatron", fixed: dict[str, object] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        build_section(name, cls, SHAPE if fixed is None else fixed, user)
    return str(caught.value)


def test_fixed_and_user_values_meet_in_the_dataclass():
    config = build_section("megatron", TransformerConfig, SHAPE, {"recompute_granularity": "selective", "hidden_dropout": 0})
    assert (config.hidden_size, config.recompute_granularity, config.hidden_dropout) == (32, "selective", 0)


def test_an_unknown_key_names_the_nearest():
    assert refusal({"recompute_granularty": "full"}) == (
        "unknown setting megatron.recompute_granularty: TransformerConfig has no such field; did you mean megatron.recompute_granularity?"
    )


def test_a_key_of_ours_names_the_setting_that_rules_it():
    assert (
        refusal({"tensor_model_parallel_size": 2})
        == "megatron.tensor_model_parallel_size is decided by parallel.tensor; remove it from megatron"
    )


def test_a_key_of_the_model_names_the_model_folder():
    assert "decided by the model folder" in refusal({"hidden_size": 64})


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"lr": "fast"}, "optimizer.lr is 'fast', must be a number or null"),
        ({"adam_beta1": True}, "optimizer.adam_beta1 is true, must be a number"),
        ({"use_distributed_optimizer": 1}, "optimizer.use_distributed_optimizer is 1, must be true or false"),
    ],
)
def test_a_wrong_type_is_refused(user: dict[str, object], message: str):
    assert refusal(user, OptimizerConfig, "optimizer", {}) == message


def test_what_megatron_refuses_becomes_our_error():
    message = refusal({"recompute_granularity": "full"})
    assert message.startswith("megatron.core does not work with section megatron (recompute_granularity: 'full'): ValueError: Using ")


def test_what_it_refuses_are_the_users_fields_not_our_defaults():
    with pytest.raises(
        ConfigError, match=r"does not work with section megatron \(expert_model_parallel_size: 2\): ValueError: num_moe_experts"
    ):
        transformer_config(ARCH, 1, 1, False, "fp32", {"expert_model_parallel_size": 2})


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), OSError("no disk"), TypeError("nothing is set")])
def test_what_no_field_can_mend_stays_as_it_is(error: Exception):
    with (
        pytest.raises(type(error), match=str(error)),
        naming_section("megatron", {} if isinstance(error, TypeError) else {"test_mode": True}),
    ):
        raise error


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"init_method": "normal"}, "megatron.init_method is 'normal', must be null"),
        ({"attention_backend": "flash"}, "megatron.attention_backend is 'flash', must be left out"),
        ({"init_method_std": -0.1}, "megatron.init_method_std is -0.1, must be 0 or more"),
        ({"hidden_dropout": 1.5}, "megatron.hidden_dropout is 1.5, must be 0 or more and below 1"),
        ({"moe_router_topk": "two"}, "megatron.moe_router_topk is 'two', must be a whole number"),
    ],
)
def test_a_value_that_no_model_can_have_is_refused(user: dict[str, object], message: str):
    assert refusal(user) == message


def interleaving_refusal(virtual_pipeline: int, user: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        transformer_config(ARCH, 1, 2, False, "fp32", user, virtual_pipeline)
    return str(caught.value)


def test_a_pipeline_layout_of_more_chunks_than_are_set_is_refused():
    assert interleaving_refusal(1, {"pipeline_model_parallel_layout": "Et|t|t|tL"}) == (
        "megatron.pipeline_model_parallel_layout makes 2 model chunks a pipeline rank, but parallel.virtual_pipeline is 1; "
        "set it to 2, or change the layout"
    )


def test_how_interleaved_stages_talk_is_not_the_users():
    assert interleaving_refusal(2, {"batch_p2p_comm": True}) == (
        "megatron.batch_p2p_comm is decided by parallel.virtual_pipeline; remove it from megatron"
    )


def test_a_type_that_yaml_cannot_spell_is_left_to_the_dataclass():
    marker = object()

    @dataclass
    class Section:
        thing: type

    assert build_section("ddp", Section, {}, {"thing": marker}).thing is marker


@pytest.mark.parametrize(
    ("section", "cls", "user", "only"),
    [
        ("megatron", TransformerConfig, {"hybrid_context_parallel": True}, "false"),
        ("megatron", TransformerConfig, {"apply_rope_fusion": True}, "false"),
        ("megatron", TransformerConfig, {"num_moe_experts": 2}, "null"),
        ("megatron", TransformerConfig, {"defer_embedding_wgrad_compute": True}, "false"),
        ("megatron", TransformerConfig, {"layernorm_zero_centered_gamma": True}, "false"),
        ("megatron", TransformerConfig, {"window_size": [128, 0]}, "null"),
        ("megatron", TransformerConfig, {"softmax_type": "off-by-one"}, "'vanilla'"),
        ("megatron", TransformerConfig, {"fp32_residual_connection": True}, "false"),
        ("megatron", TransformerConfig, {"add_qkv_bias": True}, "false"),
        ("megatron", TransformerConfig, {"attention_output_gate": True}, "false"),
        ("megatron", TransformerConfig, {"rotary_interleaved": True}, "false"),
        ("megatron", TransformerConfig, {"glu_linear_offset": 1.0}, "0.0"),
        ("megatron", TransformerConfig, {"activation_func_clamp_value": 7.0}, "null"),
        ("megatron", TransformerConfig, {"delay_wgrad_compute": True}, "false"),
        ("megatron", TransformerConfig, {"tp_comm_overlap": True}, "false"),
        ("megatron", TransformerConfig, {"no_rope_freq": 2}, "null"),
        ("megatron", TransformerConfig, {"cuda_graph_impl": "local"}, "'none'"),
        ("megatron", TransformerConfig, {"use_ring_exchange_p2p": True}, "false"),
        ("megatron", TransformerConfig, {"cpu_offloading": True}, "false"),
        ("optimizer", OptimizerConfig, {"fp16": True}, "false"),
        ("optimizer", OptimizerConfig, {"optimizer_cpu_offload": True}, "false"),
        ("optimizer", OptimizerConfig, {"use_precision_aware_optimizer": True}, "false"),
        ("optimizer", OptimizerConfig, {"overlap_param_gather_with_optimizer_step": True}, "false"),
        ("ddp", DistributedDataParallelConfig, {"average_in_collective": True}, "false"),
        ("ddp", DistributedDataParallelConfig, {"use_megatron_fsdp": True}, "false"),
        ("ddp", DistributedDataParallelConfig, {"num_distributed_optimizer_instances": 2}, "1"),
        ("ddp", DistributedDataParallelConfig, {"align_param_gather": True}, "false"),
    ],
)
def test_what_this_project_cannot_work_with_is_refused(section: str, cls: type, user: dict[str, object], only: str):
    ((key, _),) = user.items()
    message = refusal(user, cls, section, {})
    assert message.startswith(f"{section}.{key} is ")
    assert message.endswith(f"but this project works with {only} only; remove it from {section}")


def test_more_layers_in_a_stage_than_the_model_has_are_refused():
    with pytest.raises(ConfigError, match=r"num_layers_in_first_pipeline_stage .* leave the other stages -3 layers; lower them"):
        transformer_config(ARCH, 1, 2, False, "fp32", {"num_layers_in_first_pipeline_stage": 7})


def test_more_recomputed_layers_than_there_are_is_refused():
    arch = Architecture("qwen3", 32, 48, 4, 4, 2, 16, 37, 64, 1e4, 1e-6, True, True)
    recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 3}
    with pytest.raises(ConfigError, match="recompute_num_layers is 3, but a model chunk has 2 layers; give at most 2"):
        transformer_config(arch, 1, 2, False, "fp32", recompute)
