"""Each check of the doctor: what it calls an error, a warning, or neither."""

import os
import re
import runpy
import shutil
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from rich.console import Console
from transformers import Qwen3Config

from megatron_atesd.config import CheckpointConfig, LoraConfig, ModelConfig, RunConfig, TrainConfig
from megatron_atesd.doctor import examine, finding, machine, software
from megatron_atesd.doctor.finding import Finding, merge, refuse_errors, worst_first
from megatron_atesd.doctor.machine import GIB, Gpus, check_disk, check_gpus, check_memory, check_transformer_engine
from megatron_atesd.doctor.ranks import RankFacts, check_clocks, check_ranks, code_hash, config_hashes
from megatron_atesd.doctor.software import check_apex, check_versions
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.apex import Apex

TOOL = Path(__file__).resolve().parents[2] / "tools" / "doctor.py"
H100 = Gpus(8, "H100", (9, 0), free=79 * GIB, total=80 * GIB, libraries="CUDA 13.0, NCCL 2.28")
TORCH = [Requirement("torch>=2.13,<3")]


def verdicts(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.what) for finding in findings if finding.severity != "information"]


def said(findings: list[Finding]) -> str:
    return " | ".join(finding.what for finding in findings)


@pytest.mark.parametrize("version", ["2.13.0", "2.13.0+cpu", "2.14.0.dev1"])
def test_a_version_within_the_bounds_is_information(version: str) -> None:
    assert check_versions(TORCH, {"torch": version}) == [Finding("information", "versions", f"torch {version}")]


@pytest.mark.parametrize(
    ("installed", "verdict"),
    [
        ({}, ("error", "torch is not installed")),
        ({"torch": "2.12.1"}, ("error", "torch is 2.12.1, older than what this project was tried with")),
        ({"torch": "3.0"}, ("warning", "torch is 3.0, newer than what this project was tried with")),
    ],
)
def test_a_version_out_of_bounds(installed: dict[str, str], verdict: tuple[str, str]) -> None:
    findings = check_versions(TORCH, installed)
    assert verdicts(findings) == [verdict]
    assert findings[0].remedy == 'pip install "torch<3,>=2.13"'


def test_the_bounds_are_those_of_the_installation_without_its_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software.metadata, "requires", lambda _: ["torch>=99", 'no-such-package>=1; extra == "gpu"'])
    assert verdicts(software.check_installation()) == [
        ("error", f"torch is {metadata.version('torch')}, older than what this project was tried with")
    ]


def test_an_uninstalled_checkout_has_no_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "PROJECT", "no-such-project")
    assert verdicts(software.check_installation()) == [("warning", "no-such-project is not installed, so its bounds are not known")]


def test_no_apex_is_needed() -> None:
    assert check_apex(Apex((), False, False)) == []


def test_the_package_indexs_apex_is_not_nvidias(tmp_path: Path) -> None:
    assert verdicts(check_apex(Apex((tmp_path,), False, False))) == [("warning", f"apex in {tmp_path} is not NVIDIA's but a web toolkit")]


def test_nvidias_apex_without_its_kernels_is_told_from_one_with_them(tmp_path: Path) -> None:
    (tmp_path / "optimizers").mkdir()
    assert "built without its CUDA kernels" in verdicts(check_apex(Apex((tmp_path,), False, False)))[0][1]
    assert verdicts(check_apex(Apex((tmp_path,), True, False))) == []


def test_a_machine_without_gpus_is_no_error() -> None:
    assert verdicts(check_gpus(Gpus(0), 2, driver=False, visible=None)) == []
    assert verdicts(check_gpus(Gpus(0), 2, driver=True, visible="")) == []


def test_a_driver_without_gpus_is_a_warning() -> None:
    assert "the job would run on the CPU" in verdicts(check_gpus(Gpus(0), 2, driver=True, visible=None))[0][1]


def test_more_processes_than_gpus_is_an_error() -> None:
    assert verdicts(check_gpus(replace(H100, count=4), 8, driver=True, visible=None)) == [("error", "8 processes on a node of 4 GPUs")]


def test_a_gpu_that_others_use_is_a_warning() -> None:
    findings = check_gpus(replace(H100, free=40 * GIB), 8, driver=True, visible=None)
    assert verdicts(findings) == [("warning", "only 40.0 of 80.0 GiB of GPU memory are free")]


def test_fp8_needs_a_compute_capability() -> None:
    assert said(check_gpus(H100, 8, driver=True, visible=None)) == "8 × H100, FP8, CUDA 13.0, NCCL 2.28"
    assert "A100, no FP8" in said(check_gpus(replace(H100, name="A100", capability=(8, 0)), 8, driver=True, visible=None))


def test_transformer_engine_is_missed_on_gpus_only() -> None:
    assert said(check_transformer_engine(cuda=True, installed=False)) == "not installed"
    assert check_transformer_engine(cuda=False, installed=False) == []


def test_transformer_engine_without_a_gpu_is_an_error() -> None:
    """Seen with version 2.20.2: an optimizer step ends in a CUDA error."""
    assert [severity for severity, _ in verdicts(check_transformer_engine(cuda=False, installed=True))] == ["error"]


def test_transformer_engine_tells_its_fp8_recipes() -> None:
    def hopper(precision: str) -> str:
        return "needs Blackwell" if precision == "fp8_mxfp8" else ""

    assert said(check_transformer_engine(True, True, hopper)) == "installed; fp8_tensorwise, fp8_delayed, fp8_blockwise"
    assert said(check_transformer_engine(True, True, lambda precision: "too old")) == "installed; no FP8"


def test_a_transformer_engine_that_does_not_load_is_an_error() -> None:
    def broken(precision: str) -> str:
        raise OSError("libnccl.so.2: cannot open shared object file")

    found = check_transformer_engine(True, True, broken)
    assert verdicts(found) == [("error", "installed, but it cannot be used (libnccl.so.2: cannot open shared object file)")]


def test_little_memory_is_a_warning() -> None:
    assert verdicts(check_memory(3 * GIB, 4)) == [("warning", "only 3.0 GiB of memory available for 4 processes of this node")]
    assert verdicts(check_memory(4 * GIB, 4)) == []


def test_a_disk_without_room_for_one_checkpoint_is_an_error_and_for_some_a_warning() -> None:
    assert [f.severity for f in check_disk(9 * GIB, 10 * GIB, 1, "runs")] == ["error"]
    assert [f.severity for f in check_disk(29 * GIB, 10 * GIB, 3, "runs")] == ["warning"]
    assert [f.severity for f in check_disk(30 * GIB, 10 * GIB, 3, "runs")] == ["information"]
    assert [f.severity for f in check_disk(0, 0, 1, "runs")] == ["error"]


def test_a_checkpoint_of_adapters_takes_their_bytes_alone(tmp_path: Path) -> None:
    """Two layers of width 8: q and o 8 + 4·4 each, k and v 8 + 2·4, gate, up and down 8 + 24."""
    sizes: Any = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    Qwen3Config(vocab_size=32, hidden_size=8, intermediate_size=24, **sizes).save_pretrained(tmp_path)
    config = TrainConfig(model=ModelConfig(str(tmp_path)), lora=LoraConfig(rank=4))
    whole = machine.checkpoint_bytes(replace(config, lora=LoraConfig()))
    assert machine.checkpoint_bytes(config) == 16 * 2 * 4 * (2 * 24 + 2 * 16 + 3 * 32) != whole
    assert machine.checkpoint_bytes(replace(config, lora=LoraConfig(rank=4, targets=["k_proj"]))) == 16 * 2 * 4 * 16


@pytest.mark.parametrize(("keep", "every", "expected"), [(2, 10, 3), (0, 10, 10), (2, 0, 1), (0, 30, 4), (9, 50, 2)])
def test_checkpoints_on_disk_at_once(keep: int, every: int, expected: int, tmp_path: Path) -> None:
    config = TrainConfig(run=RunConfig(dir=str(tmp_path), updates=100), checkpoint=CheckpointConfig(every, keep))
    assert machine.checkpoints_to_come(config) == expected
    (tmp_path / "checkpoints" / "step_10").mkdir(parents=True)
    assert machine.checkpoints_to_come(config) == max(1, expected - 1)


def facts(**changed: object) -> RankFacts:
    return replace(RankFacts("a", config_hashes(TrainConfig()), "code", {"torch": "2.13.0"}, gpu=True), **changed)  # pyright: ignore[reportArgumentType]


def test_equal_ranks_are_one_job() -> None:
    findings = check_ranks([facts(), facts(), facts(host="b")], [(5.0, 5.1)] * 3)
    assert verdicts(findings) == []
    assert said(findings) == "at most 0.10 s apart | a: ranks 0, 1 | b: rank 2"


@pytest.mark.parametrize(
    ("odd", "what"),
    [
        (facts(config=config_hashes(TrainConfig(run=RunConfig(seed=2)))), "rank 1: settings of section run differ from those of rank 0"),
        (facts(code="other"), "rank 1: files of this project differ from those of rank 0"),
        (facts(versions={"torch": "2.14.0"}), "rank 1: versions of torch differ from those of rank 0"),
        (facts(gpu=False), "rank 1 without a GPU, unlike the others"),
    ],
)
def test_a_rank_that_differs_is_an_error_that_names_it(odd: RankFacts, what: str) -> None:
    assert verdicts(check_ranks([facts(), odd, facts()], [(5.0, 5.1)] * 3)) == [("error", what)]


@pytest.mark.parametrize(("skew", "severity"), [(1.9, "information"), (2.1, "warning"), (10.1, "error")])
def test_clocks_that_differ(skew: float, severity: str) -> None:
    assert [finding.severity for finding in check_clocks([(99.0, 100.0), (100.0 + skew, 101.0 + skew)], ["a", "b"])] == [severity]


def test_the_fast_clock_is_named() -> None:
    findings = check_clocks([(99.0, 100.0), (105.0, 106.0)], ["a", "b"])
    assert said(findings) == "the clock of b (rank 1) is at least 5.0 s ahead of that of a (rank 0)"


def test_a_rank_that_waited_long_for_the_others_has_no_wrong_clock() -> None:
    assert verdicts(check_clocks([(50.0, 100.0), (99.0, 130.0)], ["a", "b"])) == []


def test_the_code_hash_follows_names_and_text_of_the_files(tmp_path: Path) -> None:
    file = tmp_path / "tools" / "a.py"
    file.parent.mkdir()
    hashes = set()
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2")):
        file = file.rename(file.with_name(name)) if file.exists() else file
        file.write_text(text)
        hashes.add(code_hash(tmp_path))
    assert len(hashes) == 3


def test_a_token_that_does_not_appear_is_no_shared_file_system(tmp_path: Path) -> None:
    findings = examine.see_token(tmp_path / "token", seconds=0.0)
    assert verdicts(findings) == [("error", f"a file that rank 0 wrote to {tmp_path} does not appear")]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    _, problem = examine.write_token(tmp_path / "run")
    assert problem is not None
    assert (problem.severity, problem.what) == ("error", f"{tmp_path} cannot be written (Permission denied)")
    monkeypatch.setattr(examine.tempfile, "TemporaryFile", refuse)
    folder = Path(__file__).parent
    assert verdicts(examine.see_token(Path(__file__), seconds=0.0)) == [("error", f"{folder} cannot be written (Permission denied)")]


def test_a_file_in_the_run_directorys_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    for run_dir in (tmp_path / "run", tmp_path / "run" / "below"):
        _, problem = examine.write_token(run_dir)
        assert problem is not None
        assert problem.severity == "error"
        assert problem.what.startswith(f"run.dir is {run_dir}, which cannot be written to (")
        assert problem.remedy == "give a folder to write to"


def test_a_folder_closed_to_this_user_is_looked_for_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for other users than root: the system does not say what is below."""
    stat = os.stat

    def closed(path: str | Path, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{tmp_path}/closed/"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "stat", closed)
    assert machine.nearest_folder(tmp_path / "closed" / "run" / "seed2") == tmp_path / "closed"
    assert machine.checkpoints_to_come(TrainConfig(run=RunConfig(dir=str(tmp_path / "closed" / "run")))) > 0
    model = TrainConfig(model=ModelConfig(path=str(tmp_path / "closed" / "model")))
    assert verdicts(machine.read_model(model)[1]) == [("error", f"{tmp_path}/closed/model/config.json cannot be read (Permission denied)")]


def test_free_space_is_told_while_another_rank_tries_the_folder_and_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_usage, asked = shutil.disk_usage, list[Path]()

    def too_late(folder: Path) -> Any:
        asked.append(folder)
        if folder == tmp_path / "run":
            folder.rmdir()
        return disk_usage(folder)

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(machine.shutil, "disk_usage", too_late)
    assert machine.free_bytes(tmp_path / "run") > 0
    assert asked == [tmp_path / "run", tmp_path]


def test_a_machine_without_the_model_is_an_error(tmp_path: Path) -> None:
    found = machine.check_this_machine(TrainConfig(model=ModelConfig(path=str(tmp_path / "model"))))
    errors = [finding for finding in found if finding.severity == "error"]
    assert [finding.check for finding in errors] == ["model.path"]
    assert errors[0].remedy.startswith("give the folder of a downloaded model")


def test_findings_of_the_same_remedy_are_one_that_names_its_ranks() -> None:
    full, hot = Finding("warning", "disk", "1 GiB", "free some"), Finding("error", "heat", "90 °C", "cool it")
    merged = merge([[full], [replace(full, what="2 GiB"), hot], [full]])
    assert [finding.what for finding in merged] == ["1 GiB", "90 °C (rank 1)"]
    assert [finding.severity for finding in worst_first(merged)] == ["error", "warning"]


def test_only_errors_end_a_job_in_one_line_with_their_remedies() -> None:
    refuse_errors([Finding("warning", "disk", "1 GiB", "free some"), Finding("information", "hosts", "a")])
    with pytest.raises(ConfigError, match=r"^90 °C: cool it \| 8 on 4: start 4$"):
        refuse_errors([Finding("error", "heat", "90 °C", "cool it"), Finding("error", "GPU", "8 on 4", "start 4")])


def test_the_table_cuts_no_remedy_short() -> None:
    console = Console(width=60, file=StringIO())
    console.print(finding.table([Finding("error", "model.path", "a " * 40, "checkpoints_convert/hf_to_megatron.py")]))
    assert isinstance(console.file, StringIO)
    assert "…" not in console.file.getvalue()


def test_every_section_of_the_settings_is_compared() -> None:
    assert config_hashes(TrainConfig()).keys() == asdict(TrainConfig()).keys()


@pytest.mark.parametrize(("free", "code"), [(0, 2), (GIB, None)])
def test_the_command_ends_with_2_when_there_is_an_error(
    free: int, code: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: disk)
    monkeypatch.setattr(sys, "argv", ["doctor.py", f"--run.dir={tmp_path}"])
    with pytest.raises(SystemExit) if code else nullcontext() as end:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert (end.value.code if end else None) == code
    assert re.search(rf"{'error' if code else 'information'} *│ disk", capsys.readouterr().out)
