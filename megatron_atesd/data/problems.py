"""Problem files: JSON lines with `problem`, `solution` and optionally `id` and `answer`.

A line that cannot be used is named as `file:line: reason`; nothing is repaired silently.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem

_FIELDS = ("id", "problem", "solution", "answer")
_BRACES = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|\{|\}", re.DOTALL)
_SHOWN_REASONS = 10
_LONGEST_LINE = 16 * 2**20  # bytes; hundreds of times the longest worked solution, and still quick to refuse
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def last_boxed_span(text: str) -> tuple[int, int, str] | None:
    r"""Start, end and content of the last *balanced* `\boxed{…}`, or None; one pass, escaped braces do not count."""
    open_braces: list[tuple[int, int] | None] = []
    best: tuple[int, int, str] | None = None
    for token in _BRACES.finditer(text):
        if token["box"]:
            open_braces.append((token.start(), token.end()))
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces:
            box = open_braces.pop()
            if box and (best is None or box[0] > best[0]):
                best = (box[0], token.end(), text[box[1] : token.start()])
    return best


def last_boxed(text: str) -> str | None:
    r"""Content of the last balanced `\boxed{…}` of `text`, or None."""
    span = last_boxed_span(text)
    return None if span is None else span[2]


def problem_from_record(record: object, default_id: str) -> Problem:
    """Check one decoded record against the problem contract; DataError gives the reason (without file and line)."""
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object, found {type(record).__name__}")
    for name in ("problem", "solution"):
        _require_text(record, name)
    answer = _optional_text(record, "answer") or (last_boxed(record["solution"]) or "").strip()
    if not answer:
        raise DataError("no `answer`, and the solution has no \\boxed{…}: add one of the two")
    metadata = {key: value for key, value in record.items() if key not in _FIELDS}
    return Problem(_optional_text(record, "id") or default_id, record["problem"], record["solution"], answer, metadata)


def _require_text(record: Mapping[str, Any], name: str) -> None:
    if name not in record:
        raise DataError(f"`{name}` is missing")
    if not isinstance(record[name], str):
        raise DataError(f"`{name}` must be a string, found {type(record[name]).__name__}")
    if not record[name].strip():
        raise DataError(f"`{name}` is empty")


def _optional_text(record: Mapping[str, Any], name: str) -> str:
    """The field's text; numbers, as many public data sets have them, are written out; absent, null or blank is ''."""
    value = record.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"`{name}` must be a string, found {type(value).__name__}")
    return str(value).strip()


def load_problems(path: str | Path, on_error: Literal["stop", "skip"] = "stop") -> list[Problem]:
    """All problems of a JSONL file, in file order; a default id is `<file stem>-<line number>`.

    on_error: stop raises DataError at the first bad line; skip reports bad lines on stderr and leaves them out.
    Raises DataError for a missing file and for a file without a usable problem.
    """
    path = Path(path)
    problems: list[Problem] = []
    first_line: dict[str, int] = {}
    reasons: list[str] = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            problem = problem_from_record(_decode(line), default_id=f"{path.stem}-{number}")
            if problem.id in first_line:
                raise DataError(f"duplicate id {problem.id!r}, first used in line {first_line[problem.id]}: ids must be unique")
        except DataError as error:
            reasons.append(f"{path}:{number}: {error}")
            if on_error == "stop":
                raise DataError(f"{reasons[-1]} (mend the line, or set data.on_error to skip)") from None
            continue
        first_line[problem.id] = number
        problems.append(problem)
    _report_skipped(path, reasons, len(problems))
    if not problems:
        raise DataError(f"{path}: no usable problem; expected JSON lines with `problem` and `solution`")
    return problems


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except FileNotFoundError:
        raise DataError(f"problem file {path} does not exist: check the path, or make one with tools/prepare_data.py") from None
    except OSError as error:
        raise DataError(f"problem file {path} cannot be read ({error.strerror}): give a readable JSONL file") from None


def _decode(line: bytes) -> object:
    if len(line) > _LONGEST_LINE:
        raise DataError(f"{len(line)} bytes in one line, at most {_LONGEST_LINE} can be a problem: one JSON object a line")
    try:
        text = line.decode("utf-8")
        return refuse_half_characters(text, json.loads(text))
    except UnicodeDecodeError as error:
        raise DataError(f"not valid UTF-8 at byte {error.start}: save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON ({error.msg}, column {error.colno})") from None
    except ValueError as error:
        raise DataError(f"not usable JSON ({error})") from None
    except RecursionError:
        raise DataError("not usable JSON (nested too deeply)") from None


def refuse_half_characters(text: str, decoded: Any) -> Any:
    """What the JSON `text` was decoded to. Raises DataError when it has half a surrogate pair, which nothing can encode or write."""
    if _SURROGATE.search(text):
        try:
            json.dumps(decoded, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError("a \\ud800…\\udfff without its other half is no character: remove it") from None
    return decoded


def _report_skipped(path: Path, reasons: Sequence[str], kept: int) -> None:
    if not reasons:
        return
    for reason in reasons[:_SHOWN_REASONS]:
        print(f"warning: {reason}", file=sys.stderr)
    print(f"warning: {path}: {len(reasons)} bad lines skipped, {kept} problems kept", file=sys.stderr)


def save_problems(problems: Sequence[Problem], path: str | Path) -> None:
    """Write problems as JSONL; `load_problems` gives them back equal, metadata included. An old file stays until all is written."""
    path = Path(path)
    special = path.exists() and not path.is_file()  # a device or pipe can only be written to
    partial = path if special else path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for p in problems:
                record = {"id": p.id, "problem": p.problem, "solution": p.solution, "answer": p.answer, **p.metadata}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if not special:
            partial.replace(path)
    except OSError as error:
        if not special:
            with suppress(OSError):
                partial.unlink()
        raise DataError(f"cannot write {path} ({error.strerror}): choose another --out") from None


def check_disjoint(splits: Mapping[str, Sequence[Problem]]) -> None:
    """Raise DataError when two splits hold the same problem text (white space aside); the message names one."""
    owner: dict[str, tuple[str, str]] = {}
    for name, problems in splits.items():
        for problem in problems:
            key = normalised(problem.problem)
            other, other_id = owner.setdefault(key, (name, problem.id))
            if other != name:
                raise DataError(
                    f"problem {problem.id!r} of {name} is also in {other} (as {other_id!r}): "
                    "splits must not share a problem; remove it from one of them"
                )


def normalised(text: str) -> str:
    """The text with every run of white space as one space: what makes two problems the same."""
    return " ".join(text.split())
