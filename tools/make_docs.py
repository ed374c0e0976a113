"""Write the pages of docs/ that are made from the code: settings.md from the settings' dataclasses, metrics.md from the legend.

python tools/make_docs.py              # after a change of a setting, a bound or a metric
python tools/make_docs.py --pictures   # also the pictures of exposure.md
python tools/make_docs.py --out DIR    # somewhere else
"""

import argparse
import importlib.util
import json
from pathlib import Path

from megatron_atesd.errors import ConfigError, run_command
from megatron_atesd.paths import user_path
from megatron_atesd.report.reference_pages import pages

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "examples" / "mini_study" / "side" / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=user_path, default=ROOT / "docs", help="folder to write to (default: docs/)")
    parser.add_argument("--pictures", action="store_true", help="draw reveal.png and exposure_effect.png too; needs matplotlib")
    a = parser.parse_args()
    if not a.out.is_dir():
        raise ConfigError(f"--out {a.out} is no folder; make it first")
    for name, text in pages().items():
        (a.out / name).write_text(text, encoding="utf-8")
        print(f"wrote {a.out / name}")
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
