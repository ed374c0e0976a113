"""Sample responses: read back as they were written, marked by their KL, and never trusted as HTML."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_atesd.report import samples
from megatron_atesd.report.heat_figure import COLUMNS, heat_figure
from megatron_atesd.report.samples import Sample, heat_strip, level, read_samples, record_of, spread
from tests.support.run_record import SAMPLE, save_run


def test_a_sample_is_read_back_as_it_was(tmp_path: Path):
    (read,) = read_samples(save_run(tmp_path / "run"), 6)
    np.testing.assert_array_equal(read.kl, SAMPLE.kl)
    assert [getattr(read, name) for name in ("id", "problem", "tokens", "alpha", "right")] == [
        getattr(SAMPLE, name) for name in ("id", "problem", "tokens", "alpha", "right")
    ]


@pytest.mark.parametrize("line", ["", "[]", "{}", "7", '{"tokens": 3}', '{"upd'])
def test_a_line_without_a_sample_is_left_out(tmp_path: Path, line: str):
    path = save_run(tmp_path / "run") / "samples.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    assert [sample.update for sample in read_samples(path.parent, 6)] == [3]


def test_of_a_long_run_only_the_samples_that_are_shown_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, parsed = tmp_path / "samples.jsonl", list[bytes]()
    path.write_text("".join(json.dumps(record_of(replace(SAMPLE, update=update))) + "\n" for update in range(10)))
    parse = samples._sample
    monkeypatch.setattr(samples, "_sample", lambda line: parsed.append(line) or parse(line))
    assert [sample.update for sample in read_samples(tmp_path, 4)] == [0, 3, 6, 9]
    assert len(parsed) == 4


@pytest.mark.parametrize(("kl", "expected"), [(0.0, 0), (0.009, 0), (0.01, 1), (0.3, 4), (99.0, 6), (float("nan"), 0)])
def test_the_level_of_a_kl(kl: float, expected: int):
    assert level(kl) == expected


def test_the_strip_marks_tokens_by_their_kl_and_escapes_them():
    assert heat_strip(SAMPLE) == (
        '2 * 3<span class="h1" title="0.02"> =</span><span class="h4" title="0.5">⏎\n</span>'
        '<span class="h6" title="4">&lt;script&gt;alert(1)&lt;/script&gt;</span>&lt;|im_end|&gt;'
    )


def test_a_long_strip_says_how_much_is_left_out():
    assert heat_strip(SAMPLE, limit=2).endswith("<i> … 3 more tokens</i>")


def test_the_picture_puts_each_token_where_it_stands():
    long = Sample(1, "p", "", "", 0.0, 0, 1, ("ab", "$x" * (COLUMNS // 2), "\n", "c"), (0.0, 1.0, 0.0, 0.1), True, False)
    texts = [(text.get_position(), text.get_text()) for text in heat_figure(long).axes[0].texts if text.get_position()[1] > 0]
    first = (2, 0.5), ("$x" * (COLUMNS // 2))[: COLUMNS - 2]
    assert texts == [((0, 0.5), "ab"), first, ((0, 1.5), "$x"), ((2, 1.5), "⏎"), ((0, 2.5), "c")]


def test_a_spread_has_the_first_and_the_last():
    assert spread([SAMPLE] * 3, 5) == [SAMPLE] * 3
    numbered = [Sample(*[number, *list(vars(SAMPLE).values())[1:]]) for number in range(10)]
    assert [sample.update for sample in spread(numbered, 4)] == [0, 3, 6, 9]
