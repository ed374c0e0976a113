"""The legend of metrics: each name once, and names with values in them are found."""

import pytest

from megatron_atesd.report.legend import LEGEND, describe


def test_a_name_stands_once():
    names = [metric.name for metric in LEGEND]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("distill/kl", "distill/kl"),
        ("bin0/distill/kl", "distill/kl"),
        ("controller/score/0.25", "controller/score/<α>"),
        ("bin1/controller/score/1", "controller/score/<α>"),
        ("distill/kll", None),
        ("binx/distill/kl", None),
        ("controller/score/", None),
    ],
)
def test_the_entry_of_a_name(name: str, entry: str | None):
    found = describe(name)
    assert (found.name if found else None) == entry


def test_meanings_are_sentences():
    assert [metric.name for metric in LEGEND if not metric.meaning.endswith(".") or metric.meaning[0].islower()] == []
