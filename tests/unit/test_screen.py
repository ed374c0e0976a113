"""What a run's console shows on a terminal, and elsewhere, at each level."""

import io
import logging
import math
import re

import pytest
from rich.console import Console

from megatron_atesd.logs import LEVELS, OURS
from megatron_atesd.report.screen import HEADER_EVERY, Form, Screen

METRICS = {"distill/loss": 0.25, "exposure/alpha": 0.75, "time/step": 2.0}


def shown(form: Form, terminal: bool, *updates: dict[str, float], messages: tuple[str, ...] = (), width: int = 100) -> str:
    """All that a screen writes of so many updates of a run of 30."""
    file, colours = io.StringIO(), "standard" if terminal else None
    console = Console(file=file, force_terminal=terminal, width=width, markup=False, highlight=False, soft_wrap=True, color_system=colours)
    screen = Screen(30, 0, form, console)
    screen.start()
    for text in messages:
        screen.message(text)
    for update, metrics in enumerate(updates, 1):
        screen.update(update, metrics)
    screen.stop()
    return file.getvalue()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def level(request: pytest.FixtureRequest):
    before = OURS.level
    OURS.setLevel(LEVELS[request.param])
    yield
    OURS.setLevel(before)


def test_off_a_terminal_an_update_is_a_line_of_values_without_colours():
    text = shown("auto", False, METRICS, METRICS)
    assert [line.split(" eta=")[0] for line in text.splitlines()] == [f"update {i}/30 loss=0.25 alpha=0.75 seconds=2" for i in (1, 2)]


def test_on_a_terminal_an_update_is_a_row_above_a_bar():
    text = plain(shown("auto", True, METRICS))
    assert re.search(r"update +loss .*\n", text)
    assert re.search(r"  1/30 +0\.2500 .* 2\.00\n", text)
    assert re.search(r"training ━.* 1/30 .* 0:00:58 left\n$", text)  # 29 updates of two seconds


def test_the_form_can_be_chosen_wherever_it_goes():
    assert "update 1/30 loss=0.25" in plain(shown("values", True, METRICS))
    rows = shown("columns", False, METRICS).splitlines()
    assert [row.split()[0] for row in rows] == ["update", "1/30"]
    assert rows[1].endswith("  0:00:58 left")  # as there is no bar to tell it


def test_the_header_comes_again():
    text = shown("columns", False, *[METRICS] * (HEADER_EVERY + 1))
    assert [i for i, line in enumerate(text.splitlines()) if line.startswith("update")] == [0, HEADER_EVERY + 1]


def test_a_skipped_update_is_marked_and_coloured():
    text = shown("auto", True, METRICS | {"distill/loss": math.nan, "optim/skipped": 1.0})
    row = next(line for line in text.splitlines() if "skipped: not finite" in line)
    assert "\x1b[33m" in row


def test_messages_are_broken_between_words_on_a_terminal_alone():
    text = "one two three four five six"
    assert "one two three \nfour five six\n" in plain(shown("auto", True, messages=(text,), width=16))
    assert shown("auto", False, messages=(text,), width=16) == text + "\n"


def test_a_message_that_warns_goes_the_way_of_all_warnings(capsys: pytest.CaptureFixture[str]):
    assert shown("auto", False, messages=("warning: it is hot: open a window",)) == ""
    assert capsys.readouterr().err == "warning: it is hot: open a window\n"


@pytest.mark.parametrize("level", ["warning", "error"], indirect=True)
@pytest.mark.parametrize("terminal", [True, False])
def test_at_a_higher_level_no_update_is_shown(level: None, terminal: bool):
    assert shown("auto", terminal, METRICS, messages=("hello",)) == ""


@pytest.mark.parametrize(("level", "warned"), [("warning", True), ("error", False)], indirect=["level"])
def test_warnings_are_shown_up_to_their_level(level: None, warned: bool, capsys: pytest.CaptureFixture[str]):
    shown("auto", False, messages=("warning: hot",))
    assert bool(capsys.readouterr().err) is warned


def test_ours_is_told_by_default():
    assert OURS.getEffectiveLevel() == logging.INFO
