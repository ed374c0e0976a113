"""Examine what a job would run on: versions, GPUs, memory and disk, and whether all its ranks agree. Takes seconds.

python tools/doctor.py [--config FILE] [--section.key value …]             this machine
torchrun … tools/doctor.py --config FILE [--section.key value …]           all ranks of a job, as training would be started

Exit code 2 when something would end a job; training examines the same at its start, but for the bandwidth.
"""

from rich.console import Console

from megatron_atesd.config import load_config
from megatron_atesd.errors import run_command


def main() -> None:
    config = load_config()
    from megatron_atesd.doctor.examine import examine_ranks, measure_bandwidth
    from megatron_atesd.doctor.finding import table
    from megatron_atesd.parallel.groups import is_main  # torch and megatron.core are slow to import: first check the settings
    from megatron_atesd.parallel.session import processes  # torch and megatron.core are slow to import: first check the settings

    with processes(timeout_minutes=2.0, backend="gloo"):  # meets whatever is wrong with GPUs and NCCL
        findings = examine_ranks(config)
        if not any(finding.severity == "error" and finding.check == "GPU" for finding in findings):
            findings += measure_bandwidth()
        if is_main():
            Console().print(table(findings))
    if any(finding.severity == "error" for finding in findings):
        raise SystemExit(2)


if __name__ == "__main__":
    run_command(main)
