"""Loading the tokenizer that travels with a model folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_atesd.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer saved in a Hugging Face folder, without running code from it. Raises DataError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{folder}: no usable tokenizer ({reason}); copy tokenizer.json and tokenizer_config.json into it") from error
