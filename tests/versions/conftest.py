"""One process a version serves all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.versions import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    from tests.support import distill_case, version_folders  # slow to import, and only where something is named
    from tests.support.small_run import save_inputs

    inputs = save_inputs(tmp_path_factory.mktemp("inputs"))
    distill_case.save_models(inputs, "qwen3", tied=True)
    version_folders.save_models(inputs)
    lab = Lab(inputs, tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()
