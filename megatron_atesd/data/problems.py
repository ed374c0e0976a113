"""Problem files: JSON lines with `problem`, `solution` and optionally `id` and `answer`.

A line that cannot be used is named as `file:line: reason`; nothing is repaired silently.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from megatron_atesd.data.notice import warn
from megatron_atesd.data.problem_record import problem_from_record
from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem

_SHOWN_REASONS = 10
_LONGEST_LINE = 16 * 2**20  # bytes; hundreds of times the longest worked solution, and still quick to refuse
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


OnError = Literal["stop", "skip"]
Reshape = Callable[[object], object]  # makes a decoded record one of this project; raises DataError for one that it cannot use


def as_it_is(record: object) -> object:
    """A `Reshape` for records that have this project's fields already."""
    return record


def load_problems(path: str | Path, on_error: OnError = "stop", reshape: Reshape = as_it_is) -> list[Problem]:
    """All problems of a JSONL file, in file order; a default id is `<file stem>-<line number>`.

    on_error: stop raises DataError at the first bad line; skip leaves bad lines out.
    reshape: is given each decoded line before it is checked.
    Warnings about bad lines and doubtful answers go to stderr, of a torchrun job those of rank 0 only.
    Raises DataError for a missing file and for a file without a usable problem.
    """
    path = Path(path)
    lines = ((number, lambda line=line: reshape(_decode(line))) for number, line in _lines(path))
    problems = checked_problems(path, "line", lines, on_error)
    if not problems:
        raise DataError(f"{path}: no usable problem; expected JSON lines with `problem` and `solution`")
    return problems


def stream_problems(path: str | Path) -> Iterator[tuple[int, Problem]]:
    """(line number, problem) of a JSONL file, one after the other: memory holds one line. Ids are not compared, answers not doubted.

    Raises DataError for a file that cannot be read, and at the first line that holds no problem.
    """
    path = Path(path)
    for number, line in _lines(path):
        try:
            yield number, problem_from_record(_decode(line), f"{path.stem}-{number}")
        except DataError as error:
            raise DataError(f"{path}:{number}: {error} (mend the line, or make the file anew with tools/prepare_data.py)") from None


def checked_problems(
    path: Path, unit: Literal["line", "record"], records: Iterable[tuple[int, Callable[[], object]]], on_error: OnError
) -> list[Problem]:
    """The problems of a file whose units have a number and a function that decodes them or raises DataError. See `load_problems`."""
    problems: list[Problem] = []
    first_number: dict[str, int] = {}
    reasons: list[str] = []
    warnings: dict[str, list[str]] = {}
    for number, decode in records:
        place = f"{path}:{number}" if unit == "line" else f"{path}: record {number}"
        doubts: list[tuple[str, str]] = []
        try:
            problem = problem_from_record(
                decode(), f"{path.stem}-{number}", lambda what, values, doubts=doubts: doubts.append((what, values))
            )
            if problem.id in first_number:
                raise DataError(f"duplicate id {problem.id!r}, first used in {unit} {first_number[problem.id]}: ids must be unique")
        except DataError as error:
            reasons.append(f"{place}: {error}")
            if on_error == "stop":
                skip = "`--on-error skip` of tools/prepare_data.py, or `data.on_error skip` of a training, leaves bad ones out"
                raise DataError(f"{reasons[-1]} (mend the {unit}; {skip})") from None
            continue
        for what, values in doubts:
            warnings.setdefault(what, []).append(f"{place}: {what}: {values}")
        first_number[problem.id] = number
        problems.append(problem)
    skipped = [*reasons[:_SHOWN_REASONS], f"{path}: {len(reasons)} bad {unit}s skipped, {len(problems)} problems kept"] if reasons else []
    for said in (*skipped, *map(_first_of, warnings.values())):
        warn(said)
    return problems


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removesuffix(b"\n")
                text = text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text
                if text.strip():
                    yield number, text
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


def _first_of(warnings: Sequence[str]) -> str:
    return warnings[0] + (f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else "")


def save_problems(problems: Sequence[Problem], path: str | Path) -> None:
    """Write problems as JSONL; `load_problems` gives them back equal, metadata included. An old file stays until all is written."""
    save_text(map(_line_of, problems), Path(path))


def save_text(pieces: Iterable[str], path: Path) -> None:
    """Write a file of a command's --out; an old one stays until all is written. Raises DataError when it cannot be written."""
    special = path.exists() and not path.is_file()  # a device or pipe can only be written to
    written = path if special else path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(pieces)
        if not special:
            written.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror}): choose another --out") from None
    finally:
        if not special:
            with suppress(OSError):
                written.unlink()


def _line_of(p: Problem) -> str:
    record = {"id": p.id, "problem": p.problem, "solution": p.solution, "answer": p.answer, **p.metadata}
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


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
