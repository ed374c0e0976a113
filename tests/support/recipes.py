"""The settings of trainings that are shipped."""

from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# mini_study has studies, which test_study_reading.py reads.
RECIPES = sorted(path for path in EXAMPLES.rglob("*.yaml") if path.parent.name != "mini_study" and path.name != "pytorchjob.yaml")
