"""Reading the small JSON files of a model folder."""

import json
from pathlib import Path
from typing import Any

from megatron_atesd.errors import ConversionError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConversionError naming the file when it cannot be read or holds anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: cannot be read as JSON ({error}); download it again") from error
    if not isinstance(values, dict):
        raise ConversionError(f"{path}: must be a JSON object, is a {type(values).__name__}; download it again")
    return values
