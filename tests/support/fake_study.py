"""A study whose trainings are `fake_arm`s: 2 tasks × 2 bases × 3 arms × 2 seeds in seconds."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAKE = f"{{python}} {ROOT / 'tests' / 'support' / 'fake_arm.py'}"
SWEEP = str(ROOT / "tools" / "sweep_exposure.py")
TEXT = """
out: {out}
seeds: [1, 2]
bases: {{names: [7, 8], make: ["{fake} make {{folder}}"], model: "{{folder}}"}}
tasks:
  late: {{make: "{fake} make {{folder}}", train: "{{folder}}/train.jsonl", probe: "{{folder}}/probe.jsonl", test: "{{folder}}/test.jsonl"}}
  det: {{make: "{fake} make {{folder}}", train: "{{folder}}/train.jsonl", probe: "{{folder}}/probe.jsonl", test: "{{folder}}/test.jsonl"}}
settings: {{run: {{updates: 3}}}}
arms:
  half: {{exposure: {{mode: fixed, fixed: 0.5}}}}
  full: {{exposure: {{mode: fixed, fixed: 1.0}}}}
  warm: {{exposure: {{mode: linear, fixed: 0.25}}}}
fixed: [half, full]
references: [full]
evaluation: {{update: 3, samples: 4}}
signals: {{updates: 2, leads: [0, 1], alphas: [0.0, 0.5, 1.0]}}
"""


def save_study(folder: Path) -> Path:
    """The file, whose results go to out/ beside it."""
    path = folder / "study.yaml"
    path.write_text(TEXT.format(out=folder / "out", fake=FAKE))
    return path


def command(study: Path, *options: str) -> list[str]:
    """The sweep with fake arms, two at a time."""
    return [sys.executable, SWEEP, str(study), "--jobs", "2", "--launch", FAKE, *options]
