r"""Problem files and `\boxed{}`: what is accepted, what is refused and in which words."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_atesd.data.boxes import last_boxed
from megatron_atesd.data.problems import check_disjoint, load_problems, save_problems
from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem

GOOD = '{"problem": "1+1?", "solution": "It is \\\\boxed{2}"}'


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{1} and the cut-off \boxed{2", "1"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"} \boxed{3} }", "3"),
        (r"\boxed{}", None),
        (r"\boxed{4}, to be written as \boxed{\quad}", "4"),
        (r"\boxed{\{\}}", r"\{\}"),
        (r"\boxed", None),
        ("no box", None),
        (r"\boxed{open", None),
    ],
)
def test_last_boxed_is_the_last_balanced_one_that_holds_something(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


def slow_last_boxed(text: str) -> str | None:
    """Try every box from the last on and count braces from its opening one."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth, begin = 0, start + len("\\boxed{")
        for i in range(begin - 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0 and text[begin:i].strip("{} "):
                return text[begin:i]
            if depth == 0:
                break
        start = text.rfind("\\boxed{", 0, start)
    return None


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "a", " "]), max_size=30).map("".join))
def test_last_boxed_equals_counting_braces_from_every_box(text: str) -> None:
    assert last_boxed(text) == slow_last_boxed(text)


def test_a_long_run_of_open_boxes_is_read_once() -> None:
    assert last_boxed("\\boxed{" * 100_000 + "1}") == "1"


def test_defaults_come_from_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", "", GOOD)
    assert load_problems(path) == [Problem("train-2", "1+1?", "It is \\boxed{2}", "2")]


def test_other_keys_are_metadata_and_numbers_are_written_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": 7, "problem": "p", "solution": "s", "answer": 42, "level": 3}')
    assert load_problems(path) == [Problem("7", "p", "s", "42", {"level": 3})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"solution": "\\\\boxed{1}"}', "`problem` is missing"),
        ('{"problem": " ", "solution": "\\\\boxed{1}"}', "`problem` is empty"),
        ('{"problem": 3, "solution": "\\\\boxed{1}"}', "`problem` must be a string, found int"),
        ('{"problem": "p"}', "`solution` is missing"),
        ('{"problem": "p", "solution": null}', "`solution` must be a string, found NoneType"),
        ('{"problem": "p", "solution": "s"}', "no `answer`, and the solution has no \\boxed{…}"),
        ('{"problem": "p", "solution": "\\\\boxed{ }"}', "no `answer`, and the solution has no \\boxed{…}"),
        ('{"problem": "p", "solution": "s", "answer": ["1"]}', "`answer` must be a string, found list"),
        ('{"problem": "p", "solution": "s", "answer": "1", "id": true}', "`id` must be a string, found bool"),
        ('{"id": "first", "problem": "p", "solution": "s", "answer": "1"}', "duplicate id 'first', first used in line 1"),
        (
            '{"problem": "p", "solution": "\\\\boxed{6}", "answer": "7"}',
            "`answer` and the solution's last \\boxed{…} contradict each other (`7` and `6`)",
        ),
        ('{"problem": "p", "solution": "s", "answer": Infinity}', "`answer` is inf, or a number too large"),
        ('{"problem": "p", "solution": "s", "answer": 1e999}', "`answer` is inf, or a number too large"),
        ('{"problem": "p", "solution": "s", "answer": NaN}', "no `answer`, and the solution has no"),
        (b'{"problem": "\xff", "solution": "s", "answer": "1"}', "not valid UTF-8 at byte 13"),
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_reason(tmp_path: Path, line: str | bytes, reason: str) -> None:
    path = write(tmp_path / "bad.jsonl", '{"id": "first", "problem": "q", "solution": "s", "answer": "1"}', line)
    with pytest.raises(DataError) as refusal:
        load_problems(path)
    assert str(refusal.value).startswith(f"{path}:2: {reason}")


def test_skip_counts_the_bad_lines_and_keeps_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "bad.jsonl", "{", GOOD, "[]", GOOD)
    assert [p.id for p in load_problems(path, on_error="skip")] == ["bad-2", "bad-4"]
    warnings = capsys.readouterr().err.splitlines()
    assert warnings[0].startswith(f"warning: {path}:1: not valid JSON")
    assert warnings[-1] == f"warning: {path}: 2 bad lines skipped, 2 problems kept"


SHARED_KEYS = '"problem": "p", "solution": "It is $\\\\boxed{6}$."'


@pytest.mark.parametrize("answer", ["NaN", "null", '"nan"', '"<NA>"', '" "'])
def test_a_gap_in_the_answers_is_filled_by_the_box(tmp_path: Path, answer: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{{SHARED_KEYS}, "answer": {answer}}}')
    assert load_problems(path)[0].answer == "6"


def test_what_is_no_json_in_metadata_becomes_null(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f'{{{SHARED_KEYS}, "score": NaN, "more": {{"list": [1, -Infinity]}}, "large": {10**400}}}')
    assert load_problems(path)[0].metadata == {"score": None, "more": {"list": [1, None]}, "large": 10**400}


@pytest.mark.parametrize(
    ("number", "text"), [("4e-05", "0.00004"), ("3E21", "3" + 21 * "0"), ("16.0", "16"), ("2.50", "2.5"), ("9" * 400, "9" * 400)]
)
def test_answers_and_ids_that_are_numbers_are_written_in_digits(tmp_path: Path, number: str, text: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"id": {number}, "problem": "p", "solution": "s", "answer": {number}}}')
    [problem] = load_problems(path)
    assert (problem.id, problem.answer) == (text, text)


DOUBTS = (
    '{"problem": "a", "solution": "\\\\boxed{12\\\\text{ cm}}", "answer": "12"}',
    '{"problem": "b", "solution": "\\\\boxed{B}", "answer": "42"}',
    '{"problem": "c", "solution": "\\\\boxed{3} boats, hence \\\\boxed{12} seats"}',
)


def test_a_doubtful_answer_is_told_by_its_first_line_and_how_many_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", *DOUBTS)
    assert [p.answer for p in load_problems(path)] == ["12", "42", "12"]
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        f"warning: {path}:1: the `answer` and the solution's final box may differ; the `answer` is what the teacher is shown and what is "
        "graded: `12` and `12\\text{ cm}` (and 1 more)"
    )
    assert second == f"warning: {path}:3: several boxes differ and there is no `answer`, so this is taken: `12` of `3`, `12`"


@pytest.mark.parametrize(("rank", "lines"), [("0", 2), ("1", 0), ("7", 0)])
def test_of_a_job_only_the_first_rank_warns(
    tmp_path: Path, rank: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    load_problems(write(tmp_path / "bad.jsonl", "{", GOOD), on_error="skip")
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_taken_answers_load_without_a_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.jsonl", '{"problem": "p", "solution": "$x = \\\\boxed{2}$ or $x = \\\\boxed{9}$"}')
    save_problems(load_problems(source), tmp_path / "b.jsonl")
    capsys.readouterr()
    assert load_problems(tmp_path / "b.jsonl")[0].answer == "2, 9"
    assert capsys.readouterr().err == ""


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_problems([Problem("a", "p", "s", "1"), Problem("b", "q", "s", "1", {"score": float("nan")})], tmp_path / "a.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_byte_order_mark_and_windows_line_ends_are_no_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + GOOD.encode() + b"\r", GOOD.encode() + b"\r", b"")
    assert len(load_problems(path)) == 2


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"problem": "a\u2028b", "solution": "s", "answer": "1"}')
    assert load_problems(path)[0].problem == "a\u2028b"


def test_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist: check the path, or make one with tools/prepare_data\.py"):
        load_problems(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("lines", [(), ("{", "[]")])
def test_a_file_without_a_usable_problem_is_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="no usable problem"):
        load_problems(write(tmp_path / "a.jsonl", *lines), on_error="skip")


def test_saved_problems_load_equal(tmp_path: Path) -> None:
    problems = [Problem("α", "p\n\u2028q", "s", "1", {"level": 3, "tags": ["x"]}), Problem("b", "q", "\\boxed{2}", "2")]
    save_problems(problems, tmp_path / "new" / "a.jsonl")
    assert load_problems(tmp_path / "new" / "a.jsonl") == problems


def test_the_problem_file_is_json_a_line(tmp_path: Path) -> None:
    save_problems([Problem("a", "p", "s", "1", {"level": 3})], tmp_path / "a.jsonl")
    record = {"id": "a", "problem": "p", "solution": "s", "answer": "1", "level": 3}
    assert json.loads((tmp_path / "a.jsonl").read_text()) == record


def test_splits_that_share_a_problem_are_refused_by_name() -> None:
    train, test = [Problem("t1", "1 +  1?", "s", "2")], [Problem("e1", " 1 + 1?\n", "other", "2")]
    with pytest.raises(DataError, match=r"problem 'e1' of test is also in train \(as 't1'\)"):
        check_disjoint({"train": train, "test": test})


def test_a_repeat_within_one_split_is_not_a_shared_problem() -> None:
    repeated = [Problem("a", "same", "s", "1"), Problem("b", "same", "s", "1")]
    check_disjoint({"train": repeated, "test": [Problem("c", "other", "s", "1")]})
    with pytest.raises(DataError):
        check_disjoint({"train": repeated, "test": repeated[:1]})
