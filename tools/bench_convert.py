"""Memory and speed of conversion in both directions, against a plain copy of the weights on the same disk.

python tools/bench_convert.py --out bench_convert.json
python tools/bench_convert.py --hidden 4096 --ffn 12288 --heads 32 --layers 36 --vocabulary 151936 --untied    # 16 GB: Qwen3-8B

Makes a random bf16 model (default 2.2 GB: Qwen3-0.6B with 60 layers), then, each in a process of its own: a plain copy of its folder
(cp -r), Hugging Face → Megatron, Megatron → Hugging Face. A copy and a conversion end when their bytes are on the disk (fsync).
peak: largest resident memory of the process (VmHWM), with the libraries; before: the same when the libraries are loaded and nothing
is read. seconds: without the start of the process. They include SHA-256 checksums: made to Megatron, checked from Megatron.
processor s: of all threads; on a machine with other work the speed depends on how much of the processor is left.
Targets: peak ≤ 1.1 × size + 500 MB, speed ≥ 50 % of the copy. Before each run, the pages of the files that it reads are dropped from
the page cache, so all read from the disk.
"""

import argparse
import tempfile
from pathlib import Path

from megatron_atesd.errors import run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    sizes = {"hidden": 1024, "ffn": 3072, "heads": 16, "groups": 8, "head_size": 128, "layers": 60, "vocabulary": 151_936}
    for name, default in sizes.items():
        add(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    add("--untied", action="store_true", help="a head of its own")
    add("--repeats", type=int, default=3, help="of each run; medians are printed (default 3)")
    add("--dir", type=Path, default=None, help="where to work: the disk to measure (default: the temporary directory)")
    add("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args()
    from benchmarks.convert import measure, report, save_model  # slow to import: torch

    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        work = Path(folder)
        save_model(work / "hf", args)
        size = sum(file.stat().st_size for file in (work / "hf").glob("*.safetensors"))
        rows = [row for _ in range(args.repeats) for row in measure(work)]
    report(rows, size, args.out)


if __name__ == "__main__":
    run_command(main)
