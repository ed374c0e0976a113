"""How much a command says (`--log-level`), and the one form of a warning, whoever gives it: this project, Python, or a library.

debug also shows what libraries tell; info is the default; warning shows warnings and errors alone; error only what ends a command.
With several processes rank 0 speaks. Of the others come warnings that concern them alone, behind their rank.
"""

import logging
import os
import shutil
import sys
import textwrap
import warnings
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
OPTION, DEFAULT = "--log-level", "info"
HELP = "what is said: debug (also what libraries tell), info (if nothing is given), warning, or error"
OURS = logging.getLogger("megatron_atesd")
OURS.setLevel(LEVELS[DEFAULT])
_OF_LIBRARIES = {"debug": logging.INFO, "info": logging.WARNING, "warning": logging.WARNING, "error": logging.ERROR}
_COLOURS = {"error": 31, "warning": 33}


def add_log_level(parser: ArgumentParser) -> None:
    """Let `--help` tell of the option. `run_command` takes it from the command line before any parser sees it."""
    parser.add_argument(OPTION, choices=tuple(LEVELS), default=DEFAULT, help=HELP)


def take_log_level(arguments: list[str]) -> str:
    """The value of the last `--log-level VALUE` or `--log-level=VALUE`, which are removed from `arguments`; '' where a value lacks."""
    level, kept, rest = DEFAULT, list[str](), list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name != OPTION:
            kept.append(word)
        elif equals:
            level = value
        else:
            level = rest.pop(0) if rest else ""
    arguments[:] = kept
    return level


@contextmanager
def speaking_at(level: str) -> Iterator[None]:
    """Inside, this project and the libraries say what `level`, one of LEVELS, lets through, in one form on stderr."""
    root, handler = logging.getLogger(), _Speaker()
    before = root.level, OURS.level, warnings.showwarning
    root.setLevel(_OF_LIBRARIES[level])
    OURS.setLevel(LEVELS[level])
    root.addHandler(handler)
    warnings.showwarning = _show_warning
    _tell_libraries(level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        OURS.setLevel(before[1])
        warnings.showwarning = before[2]


def is_told() -> bool:
    """Whether what is neither a warning nor an error is said."""
    return OURS.isEnabledFor(logging.INFO)


def tell(text: str) -> None:
    """Say something on stderr that is no warning."""
    if is_told():
        print(text, file=sys.stderr, flush=True)


def warn_here(text: str) -> None:
    """A warning of this process, whatever its rank: `warning: WHAT: WHAT TO DO` on stderr, behind the rank where it is not 0."""
    if OURS.isEnabledFor(logging.WARNING):
        print(_ranked(labelled("warning", text)), file=sys.stderr, flush=True)


def _ranked(text: str) -> str:
    return text if _rank() == "0" else f"rank {_rank()}: {text}"


def _rank() -> str:
    """Before there are process groups, as torchrun says it."""
    return os.environ.get("RANK", "0")


def labelled(label: Literal["error", "warning"], text: str) -> str:
    """`label: text`. Where stderr is a terminal, the label is coloured, and lines are broken between words."""
    if sys.stderr is None or not sys.stderr.isatty():
        return f"{label}: {text}"
    width = shutil.get_terminal_size().columns
    lines = [textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in f"{label}: {text}".split("\n")]
    start = f"{label}:" if os.environ.get("NO_COLOR") else f"\x1b[{_COLOURS[label]}m{label}:\x1b[0m"
    return start + "\n".join(lines).removeprefix(f"{label}:")


class _Speaker(logging.Handler):
    """Puts log records on what is stderr at that moment. A warning that was said is not said again."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET if _rank() == "0" else logging.WARNING)
        self._said = set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self._text(record)
        except Exception:  # a record whose arguments do not fit its text: logging shows where it comes from
            self.handleError(record)
            return
        if record.levelno == logging.WARNING:
            if text in self._said:
                return
            self._said.add(text)
        print(text, file=sys.stderr, flush=True)

    def _text(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        if record.name not in ("py.warnings", "root") and record.name.partition(".")[0] != OURS.name:
            text = f"{record.name}: {text}"
        if record.levelno >= logging.WARNING:
            text = labelled("warning" if record.levelno < logging.ERROR else "error", text)
        return _ranked(text)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    """One line of a Python warning: what it says, and where it comes from."""
    text = " ".join(str(message).split())
    logging.getLogger("py.warnings").warning("%s (%s, %s:%d)", text, category.__name__, "/".join(Path(filename).parts[-2:]), lineno)


def _tell_libraries(level: str) -> None:
    """What libraries read before they are imported; what the user has set stays."""
    of_libraries = logging.getLevelName(max(_OF_LIBRARIES[level], logging.NOTSET if _rank() == "0" else logging.WARNING))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", of_libraries.lower())
    if level == "error":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", of_libraries)
    if not (is_told() and sys.stderr is not None and sys.stderr.isatty()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a bar in a file is one long line
