"""Seeds: every bit counts, and one that is out of range is refused by each command in its own words, with exit code 2."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.modes import make_mode

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [(5, 5 + 2**32), (0, 2**32), (9, 9 + 2**62), (2**32 - 1, 2**63 - 1), (2**40, 2**41)]


@pytest.mark.parametrize(("seed", "other"), PAIRS)
def test_every_bit_of_a_seed_counts_for_the_exposures(seed: int, other: int) -> None:
    config = ExposureConfig(mode="random", hold=1)
    one, two = (make_mode(config, 20, chosen) for chosen in (seed, other))
    assert not {one.propose(step).alpha for step in range(20)} & {two.propose(step).alpha for step in range(20)}


def test_a_seed_of_32_bits_draws_torchs_own_numbers() -> None:
    """As before seeds had more bits."""
    config = ExposureConfig(mode="random", hold=1, warmup_updates=0)
    drawn = torch.rand((), generator=torch.Generator().manual_seed(3), dtype=torch.float64).item()
    assert make_mode(config, 20, 3).propose(0).alpha == config.clip_low + (config.clip_high - config.clip_low) * drawn


@pytest.mark.parametrize("seed", ["-1", str(2**63), str(2**64), "-9223372036854775809", "5" * 300, "1.5", "x", "-"])
@pytest.mark.parametrize("command", ["tools/prepare_data.py chain --out OUT", "examples/quickstart/warm_start.py --data OUT --out OUT"])
def test_a_commands_seed_out_of_range(
    command: str, seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *arguments = command.replace("OUT", str(tmp_path / "out")).split()
    monkeypatch.setattr(sys, "argv", [script, *arguments, f"--seed={seed}"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert end.value.code == 2
    assert f"error: argument --seed: {seed} must be a whole number, 0 or more and below 2^63" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
