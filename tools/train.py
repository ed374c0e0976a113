"""Train with ATESD, or go on from the newest checkpoint of the run directory.

torchrun --nproc-per-node N tools/train.py --config FILE [--section.key value …]
"""

import os

from megatron_atesd.config import load_config, validate
from megatron_atesd.errors import run_command


def main() -> None:
    config = load_config()
    validate(config, int(os.environ.get("WORLD_SIZE", "1")))
    from megatron_atesd.train.failure import failing_visibly  # torch and megatron.core are slow to import: first check the settings
    from megatron_atesd.train.loop import train

    with failing_visibly():
        train(config)


if __name__ == "__main__":
    run_command(main)
