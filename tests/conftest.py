"""What every test starts from: one thread, no network, and no GPU unless `-m gpu` asks for it. Set before torch is imported.

ATESD_GPU_TESTS_DEVICE=cpu runs the tests of tests/gpu on the CPU, as far as they can: to try the tests themselves.
"""

import os
import re
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

# How long an example takes is no fact about the code.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")

pytest_plugins = ["tests.support.record_tested"]

ON_CPU = os.environ.get("ATESD_GPU_TESTS_DEVICE") == "cpu"


def asks_for_gpu(markexpr: str) -> bool:
    """Whether a `-m` expression selects the gpu marker (and does not only exclude it)."""
    return re.search(r"(?<!not )\bgpu\b", markexpr) is not None


def pytest_configure(config: pytest.Config) -> None:
    if ON_CPU or not asks_for_gpu(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not ON_CPU and not cuda_is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and `pytest -m gpu`"))


def cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True, scope="module")
def _no_process_groups_left() -> Iterator[None]:
    """A refusal inside a session leaves its groups to the end of the process; the next file's tests need them gone."""
    yield
    if "torch.distributed" in sys.modules:
        from tests.support.convert_models import end_process_groups

        end_process_groups()
