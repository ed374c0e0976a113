"""The lines of an update: columns that fit and stand below one another, values that a program reads, rows of labelled text."""

import math

import pytest

from megatron_atesd.report.console_lines import Columns, cut, labelled_lines, number, percent, values_line

METRICS = {
    "distill/loss": 0.25,
    "distill/kl": 0.5,
    "exposure/alpha": 0.75,
    "rollout/accuracy": 0.125,
    "rollout/length": 23.4,
    "rollout/truncated": 0.5,
    "probe/nll": 1.5,
    "perf/tokens_per_second": 12345.6,
    "time/step": 2.0,
}
BINS = METRICS | {"bin1/exposure/alpha": 0.75, "bin0/exposure/alpha": 0.25}


def test_a_row_stands_below_its_header():
    columns = Columns(100, None)
    assert columns.header(METRICS) == " update     loss      kl     α   right   probe  length   cut  tokens/s  seconds"
    assert columns.row(7, METRICS) == "  7/100   0.2500  0.5000  0.75  12.5 %  1.5000      23   50%    12,346     2.00"


def test_what_was_not_measured_leaves_its_place_empty():
    without = {name: value for name, value in METRICS.items() if name != "probe/nll"}
    assert Columns(100, None).row(7, without) == Columns(100, None).row(7, METRICS).replace("1.5000", "      ")


@pytest.mark.parametrize("width", range(20, 130, 5))
@pytest.mark.parametrize("metrics", [METRICS, BINS], ids=["one α", "two bins"])
def test_no_row_is_wider_than_the_terminal(width: int, metrics: dict[str, float]):
    columns = Columns(100, width)
    assert max(len(columns.row(7, metrics)), len(columns.header(metrics))) <= width


def test_all_columns_fit_into_eighty():
    assert Columns(999, 80).header(METRICS).endswith("seconds")


def test_a_narrow_terminal_does_without_the_last_columns():
    assert Columns(100, 40).header(METRICS).split() == ["update", "loss", "kl", "α", "right"]


def test_each_difficulty_bin_has_its_exposure_easiest_first():
    assert "0.25/0.75" in Columns(100, None).row(7, BINS)
    assert "alpha=0.75 " in values_line(7, 100, BINS)
    assert " alpha_bin0=0.25 alpha_bin1=0.75" in values_line(7, 100, BINS)


def test_a_line_of_values():
    assert values_line(7, 100, METRICS, "1:02:05") == (
        "update 7/100 loss=0.25 kl=0.5 alpha=0.75 accuracy=0.125 probe_nll=1.5 length=23.4 truncated=0.5 tokens_per_second=12346 seconds=2 "
        "eta=1:02:05"
    )


def test_a_skipped_update_is_marked_among_values():
    assert values_line(7, 100, {"distill/loss": math.nan, "optim/skipped": 1.0}) == "update 7/100 loss=nan skipped=1"
    assert "skipped" not in values_line(7, 100, {"distill/loss": 1.0, "optim/skipped": 0.0})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0127, "0.0127"),
        (-0.0004, "-0.0004"),
        (0.00001, "1e-05"),
        (0.0, "0.0000"),
        (12.345, "12.35"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_a_number_is_short_and_never_reads_as_zero(value: float, text: str):
    assert number(value) == text


def test_shares():
    assert [percent(share) for share in (0.0, 0.3754, 0.9994, 1.0)] == ["0.0 %", "37.5 %", "99.9 %", "100 %"]
    assert [cut(share) for share in (0.0, 0.001, 0.41, 1.0)] == ["", "<1%", "41%", "100%"]


ROWS = [("model", "qwen3 of three layers"), ("look", "runs/a-folder-whose-name-is-longer-than-the-terminal: metrics.jsonl")]


def test_labelled_texts_begin_in_one_column():
    assert labelled_lines(ROWS, None).splitlines() == [f"model  {ROWS[0][1]}", f"look   {ROWS[1][1]}"]


def test_labelled_texts_are_broken_between_words_alone():
    assert labelled_lines(ROWS, 20).splitlines() == [
        "model  qwen3 of",
        "       three layers",
        "look   runs/a-folder-whose-name-is-longer-than-the-terminal:",
        "       metrics.jsonl",
    ]
