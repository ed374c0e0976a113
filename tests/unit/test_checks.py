"""What is refused before the work."""

import pytest
import torch

from megatron_atesd.errors import ConfigError
from megatron_atesd.train.checks import check_compiler


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA triton compiles")
def test_compile_without_a_compiler_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    check_compiler(wanted=False)
    with pytest.raises(ConfigError, match=r"distill\.compile is true, but there is no C\+\+ compiler"):
        check_compiler(wanted=True)
