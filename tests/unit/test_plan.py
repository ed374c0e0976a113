"""The planner's formulas, its search for a layout, and the command."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_atesd.config import load_config
from megatron_atesd.model.counts import forward_flops, layer_parameters, model_parameters
from megatron_atesd.plan.hardware import GPUS, Assumptions
from megatron_atesd.plan.memory import activation_bytes, fp8_bytes, layer_activation, passes_in_flight, rank_memory, stage_parameters
from megatron_atesd.plan.planned_update import Lengths, PlannedUpdate, Recompute, planned_update
from megatron_atesd.plan.published import QWEN3
from megatron_atesd.plan.search import OFFLOAD, RECOMPUTE, SHARD, best_plan, layouts, make_plan, remedies, ways_out
from megatron_atesd.plan.speed import bubble, sorting_seconds, update_phases
from megatron_atesd.plan.tables import sorting_text, suggestion_text
from megatron_atesd.train.own_responses import KEPT
from tests.support.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "examples" / "atesd_qwen3_8b.yaml")
H100, ASSUMED = GPUS["h100"], Assumptions()
PUBLISHED = {"1.7b": 1_720_574_976, "4b": 4_022_468_096, "8b": 8_190_735_360, "14b": 14_768_307_200, "32b": 32_762_123_264}


def workload(size: str = "8b", gpus: int = 8, *settings: str) -> PlannedUpdate:
    config = load_config(["--config", RECIPE, *settings])
    return planned_update(config, QWEN3[size], gpus, Lengths.of(config))


def test_a_choice_by_alignment_costs_at_most_a_twentieth_of_the_8b_recipes_update():
    """At the recipe's hold; held twice as long, half."""
    work = workload("8b", 8, "--exposure.mode=aligned", "--exposure.progress=train_accuracy", "--exposure.hold=5")
    phases = {phase.name: phase.seconds for phase in update_phases(work, H100, ASSUMED)}
    assert 0 < phases["exposure"] <= 0.05 * (sum(phases.values()) - phases["exposure"])
    longer = update_phases(replace(work, hold=10), H100, ASSUMED)
    assert {phase.name: phase.seconds for phase in longer}["exposure"] == pytest.approx(phases["exposure"] / 2)
    assert "exposure" not in {phase.name for phase in update_phases(workload(), H100, ASSUMED)}


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_the_published_ones(size: str):
    assert stage_parameters(workload(size, 1, "--parallel.tensor=1", "--parallel.sequence=false"), 0) == PUBLISHED[size]
    assert model_parameters(QWEN3[size]) == PUBLISHED[size]


def test_what_a_recipe_says_about_its_bytes_a_parameter_is_what_is_planned():
    work = workload()
    held = list(rank_memory(work, 0).always.values())[:4]
    assert sum(held) == 20 * stage_parameters(work, 0)  # as the header of the recipe has it


@pytest.mark.parametrize(("target", "prompt"), [("mix_exposures", "teacher"), ("mix_unaided", "student")])
def test_a_mixed_target_costs_another_pass_of_the_teacher(target: str, prompt: str):
    work, plain = workload("8b", 8, f"--distill.target={target}"), workload()
    more, less = ({phase.name: phase for phase in update_phases(each, H100, ASSUMED)} for each in (work, plain))
    assert more.keys() - less.keys() == {"teacher's second reading"}
    alike = replace(plain, lengths=replace(plain.lengths, teacher=getattr(plain.lengths, prompt)))
    teacher = update_phases(alike, H100, ASSUMED)[1]
    assert teacher.name == "teacher forward"
    assert replace(more["teacher's second reading"], name=teacher.name) == teacher


def test_a_mix_of_probabilities_forms_the_logits_of_both_readings_and_a_mix_of_logits_does_not():
    plain, probabilities, logits = (workload("8b", 8, f"--distill.target={t}") for t in ("teacher", "mix_exposures", "mix_unaided"))
    losses = [{p.name: p for p in update_phases(work, H100, ASSUMED)}["loss"] for work in (plain, probabilities, logits)]
    assert (losses[1].flops, losses[2]) == (losses[0].flops * 5 / 4, losses[0])
    student = [rank_memory(work, 0).phases["student"] for work in (plain, probabilities, logits)]
    assert student[1]["teacher's hidden states"] == 2 * student[0]["teacher's hidden states"]
    assert student[1]["logits of a chunk"] == student[0]["logits of a chunk"] * 46 / 40
    assert student[2] == student[0]


def test_an_offloaded_teacher_is_on_the_device_only_in_its_pass():
    always, phases = (rank := rank_memory(workload("8b", 8, "--distill.teacher_offload=true"), 0)).always, rank.phases
    assert always["teacher"] == 0
    assert phases["teacher"]["teacher, on loan"] == always["weights"]


def test_fp8_keeps_copies_of_the_layers_and_speeds_up_the_passes_that_are_in_it():
    plain = workload()
    of_teacher, of_student = (workload("8b", 8, f"--precision.{role}=fp8_blockwise") for role in ("teacher", "student"))
    layers = 36 * layer_parameters(QWEN3["8b"], 4)
    assert [fp8_bytes(work) for work in (plain, of_teacher, of_student)] == [0, layers, 2 * layers]
    assert rank_memory(of_student, 0).peak - rank_memory(plain, 0).peak == 2 * layers
    seconds = [{phase.name: phase.seconds for phase in update_phases(work, H100, ASSUMED)} for work in (plain, of_teacher)]
    assert {name for name in seconds[0] if seconds[1][name] < seconds[0][name]} == {"teacher forward", "probe"}


def test_a_probe_size_of_0_plans_for_every_problem_of_the_file(tmp_path: Path):
    probe = tmp_path / "probe.jsonl"
    probe.write_text("".join(json.dumps({"problem": f"{n} + 1?", "solution": f"\\boxed{{{n + 1}}}"}) + "\n" for n in range(100)))
    work, few = (workload("8b", 8, f"--data.probe={probe}", f"--data.probe_size={size}") for size in (0, 16))
    assert (work.probe, few.probe) == (100, 16)
    seconds = [{phase.name: phase.seconds for phase in update_phases(each, H100, ASSUMED)}["probe"] for each in (work, few)]
    assert seconds[0] / seconds[1] == pytest.approx(100 / 16, rel=0.01)


def test_sorting_problems_by_difficulty_costs_what_as_many_probes_or_rollouts_do():
    fixed = ("--exposure.mode=fixed", "--exposure.probe_every=1", "--exposure.bins=2", "--data.probe_size=64")
    nll, rate, field = (workload("8b", 8, *fixed, f"--exposure.difficulty={difficulty}") for difficulty in ("nll", "pass_rate", "field"))
    seconds = {phase.name: phase.seconds for phase in update_phases(nll, H100, ASSUMED)}
    assert sorting_seconds(nll, H100, ASSUMED) == pytest.approx(seconds["probe"] * (100 * 32 + 64) / 64, rel=0.01)
    assert sorting_seconds(rate, H100, ASSUMED) == pytest.approx(seconds["rollout"] * (4 * 100 * 32 + 12 * 64) / 32)
    plan = make_plan(rate, H100, ASSUMED)
    line = sorting_text(plan, H100, ASSUMED)
    assert line.startswith("Once, before the first update: the start model gives 13,568 responses to sort problems by difficulty, ")
    assert line.endswith(f" s, as long as {sorting_seconds(rate, H100, ASSUMED) / plan.seconds:,.1f} updates.\n")
    assert {sorting_text(make_plan(work, H100, ASSUMED), H100, ASSUMED) for work in (field, workload())} == {""}


def test_problems_that_are_sorted_are_those_of_the_file_at_most(tmp_path: Path):
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"problem": f"{n} + 1?", "solution": f"\\boxed{{{n + 1}}}"}) + "\n" for n in range(100)))
    settings = (f"--data.train={train}", "--data.probe_size=16", "--exposure.bins=2", "--data.batch=8")
    assert [workload("8b", 8, *settings, f"--run.updates={updates}").references for updates in (2, 50)] == [16 + 16, 100 + 16]


def test_a_rollout_in_fp8_reads_a_byte_of_each_weight_of_the_layers():
    bf16, fp8 = (update_phases(workload("8b", 8, *more), H100, ASSUMED)[0] for more in ((), ("--precision.rollout=fp8_tensorwise",)))
    steps = 1024  # one batch of 16 a data rank
    assert bf16.memory - fp8.memory == steps * 36 * layer_parameters(QWEN3["8b"], 4)


def test_1f1b_keeps_fewer_micro_batches_on_later_stages_and_never_more_than_there_are():
    work = workload("8b", 8, "--parallel.tensor=1", "--parallel.sequence=false", "--parallel.pipeline=4")
    assert [passes_in_flight(work, stage, 8) for stage in range(4)] == [4, 3, 2, 1]
    assert passes_in_flight(work, 0, 2) == 2


def test_recomputing_every_layer_leaves_one_input_a_layer_and_one_layer():
    work = replace(workload("8b", 1, "--parallel.tensor=1", "--parallel.sequence=false"), recompute=Recompute(36, 1))
    assert activation_bytes(work, 0) == work.fullest(256) * (36 * 2 * 4096 + layer_activation(work, fused_norm=True))


def test_operations_of_one_token_are_two_for_each_weight():
    arch = replace(QWEN3["8b"], qk_norm=False)
    matrices = 8_190_735_360 - 2 * 151_936 * 4096 - 4096 - 36 * (2 * 4096 + 2 * 128)
    attention = 36 * 4 * 4096
    assert forward_flops(arch, 1) == 2 * matrices + attention


def test_twice_the_response_doubles_loss_and_rollout_and_does_not_double_the_prompts_part():
    short = {p.name: p for p in update_phases(workload(), H100, ASSUMED)}
    twice = {p.name: p for p in update_phases(workload("8b", 8, "--rollout.max_new_tokens=2048"), H100, ASSUMED)}
    assert twice["loss"].flops == 2 * short["loss"].flops
    assert 1.6 < twice["student forward and backward"].flops / short["student forward and backward"].flops < 2
    assert twice["rollout"].seconds == pytest.approx(2 * short["rollout"].seconds, rel=0.01)  # bound by launches


def test_the_loss_is_four_products_over_a_tensor_ranks_vocabulary_and_passes_over_its_logits():
    """On 8 GPUs at TP 4 a data rank has 16 of the 32 responses."""
    work = workload()
    loss = next(phase for phase in update_phases(work, H100, ASSUMED) if phase.name == "loss")
    tokens = 16 * 1024
    assert work.tensor == 4
    assert loss.flops == 4 * 2 * tokens * 4096 * 151_936 / 4
    assert loss.memory == 80 * tokens * 151_936 / 4
    reading, computing = loss.memory / (3.35e12 * ASSUMED.bandwidth), loss.flops / (989e12 * ASSUMED.utilization)
    sending = 2 * tokens * 4096 * 4 * 3 / 4 / (450e9 * ASSUMED.link)
    assert loss.seconds == pytest.approx(reading + computing + sending)


@pytest.mark.parametrize(("distributed", "sent", "moved"), [(False, 4, 38), (True, 3, 19)])
def test_two_data_ranks_reduce_gradients_and_step(distributed: bool, sent: int, moved: int):
    """Bytes a parameter. An all-reduce sends all 4 of the gradient; divided, half of them and half the new weight. The step reads the
    gradient twice for its norm, then gradient, master weight and both moments, and writes the last three and the weight."""
    work = replace(workload(), distributed=distributed)
    assert work.replicas == 2
    phases = {phase.name: phase for phase in update_phases(work, H100, ASSUMED)}
    parameters = stage_parameters(work, 0)
    gradients, step = phases["gradients over data ranks"], phases["optimizer"]
    assert gradients.sent == sent * parameters
    assert gradients.seconds == pytest.approx(sent * parameters / (450e9 * ASSUMED.link))
    assert step.memory == moved * parameters
    assert step.seconds == pytest.approx(moved * parameters / (3.35e12 * ASSUMED.bandwidth))


SIGNALS = {  # texts of a problem: tokens of prompt and text, with a student's prompt of 100, a teacher's of 300, a response of 50
    "exposure.mode=fixed": [(100, 200)],
    "exposure.mode=learned": [(100, 200), (300, 200)],
    "exposure.grounding=off": [(100, 200)],
    "exposure.grounding=own": [(100, 200), *[(300, 50)] * KEPT],
    "exposure.progress=probe_own": [(100, 200), (300, 200), *[(100, 50)] * KEPT],
    "exposure.progress=probe_margin": [(100, 200), (300, 200), *[(100, 50)] * 2 * KEPT],
    "exposure.progress=probe_kl": [(100, 200), (300, 200), (100, 50), (300, 50)],
    "exposure.progress=probe_kl --distill.target=mix_exposures": [(100, 200), (300, 200), (100, 50), (300, 50), (300, 50)],
    "exposure.progress=probe_kl --distill.target=mix_unaided": [(100, 200), (300, 200), (100, 50), (300, 50), (100, 50)],
}


@pytest.mark.parametrize("setting", SIGNALS)
def test_the_probe_scores_a_data_ranks_share_of_its_texts(setting: str):
    """64 problems over two data ranks."""
    work = replace(workload("8b", 8, *f"--{setting}".split()), probe=64, lengths=Lengths(student=100, teacher=300, response=50))
    arch = QWEN3["8b"]
    texts = [forward_flops(arch, prompt + text) + 2 * text * 4096 * 151_936 for prompt, text in SIGNALS[setting]]
    every = 10 if setting == "exposure.mode=fixed" else 1
    assert update_phases(work, H100, ASSUMED)[-1].flops == pytest.approx(32 * sum(texts) / 4 / every)


def test_fresh_answers_of_the_probe_cost_a_rollout_of_as_many_problems():
    """32 problems of the probe are as many as an update has."""
    seldom = [f"--exposure.{setting}" for setting in ("mode=fixed", "probe_every=4")]
    signals = ("probe_accuracy", "probe_nll")
    works = [workload("8b", 8, "--data.probe_size=32", *seldom, f"--exposure.progress={signal}") for signal in signals]
    seconds = [{phase.name: phase.seconds for phase in update_phases(work, H100, ASSUMED)} for work in works]
    assert seconds[0]["probe"] - seconds[1]["probe"] == pytest.approx(seconds[0]["rollout"] / 4)


def test_messages_between_nodes_go_over_the_network():
    """TP 16 does not fit in a node of 8."""
    work = replace(workload("8b", 16), tensor=16)
    phases = {phase.name: phase for phase in update_phases(work, H100, ASSUMED)}
    within = {phase.name: phase for phase in update_phases(work, replace(H100, network=H100.nvlink), ASSUMED)}
    teacher = phases["teacher forward"]
    assert teacher.seconds - within["teacher forward"].seconds == pytest.approx(teacher.sent / ASSUMED.link * (1 / 50e9 - 1 / 450e9))


def test_a_backward_pass_costs_two_forward_passes_and_what_is_computed_again():
    work = workload()
    equal = replace(work, lengths=replace(work.lengths, teacher=work.lengths.student))
    again = replace(equal, recompute=Recompute(36, 1))
    for one, passes in ((equal, 3), (again, 4)):
        phases = {phase.name: phase for phase in update_phases(one, H100, ASSUMED)}
        assert phases["student forward and backward"].flops == pytest.approx(passes * phases["teacher forward"].flops)


def test_a_stage_reads_and_sends_its_part_of_a_rollout_which_takes_as_long():
    whole = workload("8b", 8)
    one, four = (update_phases(work, H100, ASSUMED)[0] for work in (whole, replace(whole, pipeline=4, gpus=4 * whole.gpus)))
    assert (four.memory, four.sent, four.flops) == pytest.approx((one.memory / 4, one.sent / 4, one.flops / 4))
    assert four.seconds == pytest.approx(one.seconds)


def test_more_micro_batches_shrink_the_bubble():
    work = workload("8b", 8, "--parallel.tensor=1", "--parallel.sequence=false", "--parallel.pipeline=4")
    assert [bubble(work, n) for n in (1, 3, 12)] == [4, 2, 1.25]
    assert bubble(replace(work, virtual=3), 3) == pytest.approx(1 + 1 / 3)


def test_layouts_divide_the_model_and_the_batch():
    found = list(layouts(workload("8b", 32), ASSUMED))
    assert {(w.tensor, w.pipeline, w.data) for w in found} >= {(1, 1, 32), (8, 4, 1), (4, 2, 4)}
    assert all(w.batch % w.data == 0 and 36 % w.pipeline == 0 and w.tensor in (1, 2, 4, 8) for w in found)


def test_a_gpu_has_the_memory_that_cuda_reports_of_it():
    """A run that takes 75 GiB fits an H100 of "80 GB", of which torch sees 79.1 GiB."""
    work = workload("8b", 8, "--rollout.max_new_tokens=16384")
    assert 75 * 2**30 < make_plan(work, H100, ASSUMED).peak < H100.memory < 79.2 * 2**30


def test_the_suggestion_fits_and_leaves_most_room_of_those_that_are_as_fast_as_can_be_told():
    work = workload()
    best = best_plan(work, H100, ASSUMED)
    assert best is not None
    assert best.peak <= H100.memory
    fitting = [plan for w in layouts(work, ASSUMED) if (plan := make_plan(w, H100, ASSUMED)).peak <= H100.memory]
    fastest = min(plan.seconds for plan in fitting)
    assert best.seconds <= 1.05 * fastest
    assert best.peak == min(plan.peak for plan in fitting if plan.seconds <= 1.05 * fastest)


def test_there_is_no_suggestion_where_nothing_fits():
    assert best_plan(workload("32b", 1), H100, ASSUMED) is None


def test_a_layout_that_fits_is_kept_unless_another_is_clearly_faster():
    kept, slow = workload(), workload("8b", 8, "--parallel.pipeline=2", "--parallel.tensor=4")  # one data rank: two rounds of rollouts
    for work, suggested in ((kept, "this layout"), (slow, "TP ")):
        text = suggestion_text(make_plan(work, H100, ASSUMED), best_plan(work, H100, ASSUMED), H100, ASSUMED)
        assert text.startswith(f"Suggested: {suggested}")


def test_where_nothing_fits_what_would_do_does():
    work = workload("14b", 4)
    assert best_plan(work, H100, ASSUMED) is None
    ways = ways_out(work, H100, ASSUMED)
    assert [name for name, _ in ways] == [f"{SHARD}, {OFFLOAD} and {RECOMPUTE}", "8 GPUs"]
    assert all(plan.peak <= H100.memory for _, plan in ways)
    together = ways[0][1].work
    assert (together.gpus, together.distributed, together.offload) == (4, True, True)
    assert together.recompute.layers == 40 // together.pipeline
    assert "Or 8 GPUs: TP " in suggestion_text(make_plan(work, H100, ASSUMED), None, H100, ASSUMED)


def test_a_remedy_makes_it_fit():
    work = workload("8b", 8, "--parallel.micro_batch_tokens=32768")
    assert make_plan(work, H100, ASSUMED).peak > H100.memory
    assert any(text.startswith("parallel.micro_batch_tokens 16384") for text in remedies(work, H100, ASSUMED))
    assert make_plan(replace(work, micro_batch_tokens=16384), H100, ASSUMED).peak <= H100.memory


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "plan.py"), "--config", RECIPE, *arguments]
    return subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=PATIENCE)


def test_the_command_prints_the_plan_and_writes_it(tmp_path: Path):
    result = plan("--model-shape", "8b", "--gpus", "8", "--gpu", "h100", "--json", str(tmp_path / "plan.json"))
    assert (result.returncode, result.stderr) == (0, "")
    written = json.loads((tmp_path / "plan.json").read_text())
    expected = make_plan(workload(), H100, ASSUMED)
    assert written["plan"]["peak"] == expected.peak
    assert f"{expected.peak / 2**30:.2f} in student" in result.stdout
    assert "Assumed, not measured: utilization 0.4" in result.stdout


def test_the_command_says_what_to_change_and_fails_when_it_does_not_fit():
    result = plan("--model-shape", "8b", "--gpus", "8", "--gpu", "h100", "--parallel.micro_batch_tokens", "32768")
    assert result.returncode == 1
    assert "Does not fit a h100. Alone enough: " in result.stdout
    assert "parallel.micro_batch_tokens 16384" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-shape", "8b", "--gpus", "6"], "does not divide the 6 processes"),
        (["--model-shape", "8b", "--gpus", "0"], "--gpus is 0, must be 1 or more"),
        (["--gpus", "8"], "or --model-shape for a published size"),
        (
            ["--model-shape", "8b", "--gpus", "8", "--precision.teacher", "fp8_mxfp8"],
            "but on h100 there is fp8_tensorwise, fp8_delayed, fp8_b",
        ),
        (["--model-shape", "8b", "--gpus", "8", "--parallel.tensor", "16"], "parallel.tensor 16 times parallel.pipeline 1"),
        (["--model-shape", "8b", "--gpus", "8", "--response-tokens", "40000"], "44096 tokens together, but the model has 40960 positions"),
        (["--model-shape", "8b", "--gpus", "8", "--json", "/no/such/folder/plan.json"], "give a file in a folder that exists"),
        (["--model-shape", "8b", "--gpus", "8", "--optimizer.optimizer", "sgd"], "knows the state of adam only"),
        (
            ["--model-shape", "8b", "--gpus", "8", "--data.probe", "no/such.jsonl", "--data.probe_size", "0"],
            "all problems of data.probe, but 'no/such.jsonl' is no file; write the file first, or set data.probe_size",
        ),
        (["--model-shape", "8b", "--gpus", "8", "--engine.batch", "-5"], "engine.batch is -5, must be 0 or more"),
        (
            ["--model-shape", "8b", "--gpus", "8", "--exposure.mode", "aligned", "--exposure.hold", "0"],
            "exposure.hold is 0, must be 1 or more",
        ),
        (["--model-shape", "8b", "--gpus", "8", "--lora.alpha", "128"], "but lora.rank is 0, which trains all weights"),
        (["--model-shape", "8b", "--gpus", "8", "--engine.bach", "3"], "did you mean engine.batch?"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused_in_one_line(arguments: list[str], message: str):
    result = plan(*arguments, "--gpu", "h100")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
