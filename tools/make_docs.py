"""Write what is made from the code and its records: settings.md from the settings' dataclasses, metrics.md from the legend, and the
table of tested versions in README.md from requirements/tested.json.

python tools/make_docs.py              # after a change of a setting, a bound or a metric, and after `make tested`
python tools/make_docs.py --pictures   # also the pictures of exposure.md
python tools/make_docs.py --out DIR    # the pages somewhere else; README.md stays as it is
"""

import argparse
import importlib.util
import json
from pathlib import Path

from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.paths import user_path
from megatron_atesd.report.reference_pages import pages
from megatron_atesd.report.tested_versions import read_runs, with_table

ROOT = Path(__file__).resolve().parents[1]
DOCS, README, TESTED = ROOT / "docs", ROOT / "README.md", ROOT / "requirements" / "tested.json"
STUDY = ROOT / "examples" / "mini_study" / "side" / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=user_path, default=DOCS, help="folder to write to (default: docs/)")
    parser.add_argument("--pictures", action="store_true", help="draw reveal.png and exposure_effect.png too; needs matplotlib")
    a = parser.parse_args()
    if not a.out.is_dir():
        raise ConfigError(f"--out {a.out} is no folder; make it first")
    for name, text in pages().items():
        (a.out / name).write_text(text, encoding="utf-8")
        print(f"wrote {a.out / name}")
    if a.out.resolve() == DOCS:
        README.write_text(with_table(README.read_text(encoding="utf-8"), read_runs(TESTED)), encoding="utf-8")
        print(f"wrote the table of tested versions in {README}")
    if a.pictures:
        draw(a.out)


def draw(out: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("drawing needs matplotlib: pip install -e '.[plots]' in this project's checkout")
    from megatron_atesd.report.exposure_figures import exposure_effect_figure, reveal_figure
    from megatron_atesd.report.pictures import save

    figures = {"reveal.png": reveal_figure(), "exposure_effect.png": exposure_effect_figure(json.loads(STUDY.read_text(encoding="utf-8")))}
    for name, figure in figures.items():
        save(figure, out / name)
        print(f"wrote {out / name}")


if __name__ == "__main__":
    run_command(main)
