"""What the wording of a response gives away: that its writer was shown a solution, and how much it checks and doubts.

Phrases of English and Chinese. A measure of a run against its own start, not a judgement of one response.
"""

import re
from collections.abc import Callable

_TEXT = r"(?:final |correct )?(?:solution|answer)s?\b(?! (?:choice|option|set|format|sheet))"
_NOT_OF_A_PART = r"(?! (?:of|to)\b(?! (?:this|the) (?:problem|question)))"  # the solution of an equation, the answer to part (a)
_WORKED = r"(?:答案|解答|解法|解析(?![几式延法函]))"  # not 解析几何, analytic geometry, nor 解析式, a formula
# What nobody says who was shown no solution. Of a student's own work, "the solution" alone is an ordinary word.
LEAKAGE = re.compile(
    "|".join(
        (
            rf"\b(?:reference|provided|supplied|ground[- ]truth) {_TEXT}",
            rf"\b(?:the|this|that|your) given {_TEXT}{_NOT_OF_A_PART}",
            r"\b(?:the|this|that|your) verified solution\b",  # "the verified answer" is one that its writer has checked
            rf"\b(?:according to|as (?:shown|given|stated|explained|described) (?:in|by)) the {_TEXT}{_NOT_OF_A_PART}",
            r"\b(?:solution|answer) (?:(?:that )?(?:i|we) (?:was|were|am|are)) (?:given|provided|supplied|shown)\b",
            r"\b(?:solution|answer) (?:that (?:is|was) )?(?:given|provided|supplied|shown) (?:above|here|to (?:me|us))\b",
            r"\b(?:as|in|by|from|per|to|with|following) the (?:solution|answer) (?:above|below)\b",
            r"\bthe (?:solution|answer) above (?:shows?|says|states|gives)\b",
            rf"参考(?:{_WORKED}|过程)",
            r"标准答案",
            rf"(?:给定|给出|提供|所给)的?(?:参考)?{_WORKED}",
            rf"(?:根据|按照|如)(?:上述|上面的?|前面的?)?{_WORKED}",
        )
    ),
    re.IGNORECASE,
)
EXPLORATION = re.compile(
    "|".join(
        (
            r"\b(?:wait|hm+|however|alternatively|maybe|perhaps|actually|unsure|not sure|double[- ]check)\b",
            r"\blet(?:'s| me| us) (?:re-?)?(?:check|verify|consider|think|examine|try|see if)\b",
            r"\bon second thought\b",
            r"\banother (?:way|approach|idea|method)\b",
            r"等等|等一下|等下|不对|不过|然而|也许|或许|重新|另一种(?:方法|思路|解法)|换(?:个|一个|一种)(?:思路|角度|方法)",
            r"再(?:检查|想|看|算|试|验证|确认)|(?:检查|验证|确认)一下",
        )
    ),
    re.IGNORECASE,
)


def speaks_of_a_given_solution(response: str, prompt: Callable[[], str]) -> bool:
    """Whether a phrase of `response` says that its writer was shown a solution or an answer; one that the prompt has too does not count.

    prompt: gives its text, which few responses need.
    """
    phrases = {_plain(found[0]) for found in LEAKAGE.finditer(_plain(response))}
    asked = _plain(prompt()) if phrases else ""
    return any(phrase not in asked for phrase in phrases)


def exploration_words(response: str) -> int:
    """How many words and phrases of checking, doubting and trying otherwise there are."""
    return sum(1 for _ in EXPLORATION.finditer(response))


def _plain(text: str) -> str:
    """In small letters, with one space wherever there is any, also where a line ends within a phrase."""
    return " ".join(text.lower().split())
