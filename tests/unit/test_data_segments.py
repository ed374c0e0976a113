"""Where a solution is cut: each text is given with ¦ where it is cut."""

import pytest

from megatron_atesd.data.markup import open_spans
from megatron_atesd.data.segments import cut


def cuts(marked: str) -> str:
    text = marked.replace("¦", "")
    return "¦".join(cut(text, len(text), open_spans(text)))


@pytest.mark.parametrize(
    "marked",
    [
        # Chinese and Japanese
        "设苹果有x个。¦则梨有3x个。¦所以有15个。",
        "他问：“几个？”¦我说：“五个。”¦对。",
        "「はい。いいえ。」¦次は三だ。",
        "「五個。」と言った。¦つまり五。",
        "对吗？¦对！¦所以是三。",
        "最后得x＝３．５。¦完。",
        "（注：一。二。）¦三。¦四。",
        "x是5．¦y是6．",
        "对吗?¦是的.¦完",
        "解得 $x。y$ 吗？！¦是。\n¦好。",
        "一。\n\n¦二。",
        # abbreviations
        "Take e.g. five. ¦Then i.e. six.",
        "See Fig. 2 and Eq. (3). ¦So it is.",
        "Dr. Ann and Mr. Bo left. ¦She is Mrs. Lee.",
        "Cf. No. 5 on p. 12. ¦Is it odd? ¦No. ¦So it is even.",
        "We get approx. 3 resp. 4. ¦Done.",
        "By J. R. Smith et al. it holds. ¦Done.",
        "Apples, pears, etc. are fruit. ¦Plums, etc. ¦Now count.",
        "It goes through A. ¦Then through B.",
        "Choose A. or B. here. ¦Then go.",
        "Nach Abb. 3 gilt z.B. dies. ¦Also gilt es.",
        "Take the 1st. ¦Then the 2nd.",
        # factorials and sums
        "Now 5! is 120. ¦And n! grows.",
        "We have 4! = 24 here. ¦Wow! ¦Then 3! ways.",
        "1 + 2 + ... + 9 is 45. ¦Add it ... so. ¦Wait... ¦Then go.",
        # numbers of a list
        "1. Add. ¦Then go.",
        "a. First add. ¦Then go.",
        "Case 1. Let it be. ¦Then go.",
        # formulas
        "Let $c =\n5$ be. ¦Then $5! = 120$ holds.",
        "So $a. b$ is. ¦Then $x = 5.$ ¦Now go.",
        "Say \\text{A. or B. } now. ¦Then go.",
        "It costs $5. ¦So $x = 3. y$ holds.",
        "It is \\$5. ¦Not \\$6.",
        # words
        "add ¦$x = 3 + 4$ ¦to",
        "add ¦(three and four) ¦now",
        "所以得五，¦再加三，¦即可",
        # steps
        "One. Two.\n\n¦\\begin{align*}\na\n\nb\n\\end{align*}\n\n¦Three.",
        "One.\n\n¦```\n# 1. \n\n2. x\n```\n¦2. Two.",
        "One.\r\n\r\n¦Two. More.\r\n\r\n¦Three.",
        "1. One.\r\n¦2. Two.",
        "解：\n¦第一步 加。减。\n¦第二步 乘。",
        "1、加。\n¦2、减。",
        "（1）加。\n¦（2）减。",
        "| a | b |\n|---|---|\n| 1. | 2 |\n¦So it is.",
        "The path is C:\\(new\\[dir. ¦Then go.",
    ],
)
def test_the_cuts_are_those_marked(marked: str) -> None:
    assert cuts(marked) == marked


@pytest.mark.parametrize("text", ["$x = 3 + 4$", "\\begin{proof} One. Two. \\end{proof}", "```\na b\n\nc\n```", "word"])
def test_what_is_one_whole_is_one_segment(text: str) -> None:
    assert cuts(text) == text


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\r\n"])
def test_blank_text_has_no_segment(text: str) -> None:
    assert cut(text, len(text), []) == ()
