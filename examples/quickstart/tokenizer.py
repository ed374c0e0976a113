"""The word-level tokenizer of the quickstart's toy model, with a chat template in the manner of Qwen3.

    build_tokenizer().save_pretrained(DIR)     # AutoTokenizer.from_pretrained(DIR) gives the same ids

Numbers 0…22 are one token each, and so are operations such as `+4`. The template has the turns and the thinking switch of
Qwen3's, without the line breaks that would only make the toy's sequences longer.
"""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_atesd.config import PromptConfig
from megatron_atesd.data.sources.chain import MODULUS, OPERATIONS

PAD, START, END, UNKNOWN = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|unk|>"
# One thinking switch for both roles: the reference is then all that tells them apart.
PROMPT = PromptConfig(
    student_thinking=False,
    teacher_thinking=False,
    instruction="",
    reference_intro="reference",
    answer_intro="answer",
    transition="solve",
    max_length=80,
)

_WORDS = ["user", "assistant", "system", PROMPT.reference_intro, PROMPT.answer_intro, PROMPT.transition]
_MARKS = ["\n\n", "\n", "=", "\\boxed{", "}", "<think>", "</think>"]
_PIECES = r"<\|\w+\|>|</?think>|\\boxed\{|\}|=|\n\n|\n|[-+*]\d+|\d+|[a-z]+"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + message.content + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think></think>' -}}
{%- endif -%}
{%- endif -%}"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """52 entries; decode(encode(text)) == text for every chain problem and solution; eos is the end of turn."""
    entries = [PAD, START, END, UNKNOWN, *_MARKS, *_WORDS, *map(str, range(MODULUS)), *OPERATIONS]
    tokenizer = Tokenizer(models.WordLevel({entry: i for i, entry in enumerate(entries)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
