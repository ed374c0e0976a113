"""From the columns of a data set to the fields of a problem file: `problem=question answer=final`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_atesd.data.json_values import is_missing
from megatron_atesd.data.problem_record import optional_text
from megatron_atesd.errors import ConfigError, DataError


@dataclass(frozen=True)
class Reading:
    r"""How a record of others becomes one of a problem file.

    columns: field of the problem file → column of the source. What is not named keeps its name.
    box_answers: a record without a solution gets `\boxed{answer}` as one.
    extras: metadata that every record gets, unless it has its own.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    box_answers: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, record: object) -> object:
        """The record with this project's fields; what is no mapping is left to the checks. Raises DataError for a missing column."""
        if not isinstance(record, Mapping):
            return record
        row = self._renamed(record)
        if self.box_answers and is_missing(row.get("solution")) and (answer := optional_text(row, "answer")):
            row["solution"] = f"\\boxed{{{answer}}}"
        return {**self.extras, **row}

    def _renamed(self, record: Mapping[Any, Any]) -> dict[Any, Any]:
        for name, column in self.columns.items():
            if column not in record:
                there = ", ".join(f"`{key}`" for key in record)
                raise DataError(f"there is no column `{column}` to take `{name}` from; there are {there}")
        others = {key: value for key, value in record.items() if key not in self.columns.values()}
        return others | {name: record[column] for name, column in self.columns.items()}


def column_map(words: Iterable[str]) -> dict[str, str]:
    """{"problem": "question"} of `problem=question`. Raises ConfigError for a word that is no FIELD=COLUMN, or a field named twice."""
    columns: dict[str, str] = {}
    for word in words:
        name, sign, column = word.partition("=")
        if not (name and sign and column):
            raise ConfigError(f"--columns has {word!r}, must be FIELD=COLUMN, such as problem=question")
        if name in columns:
            raise ConfigError(f"--columns names {name} twice ({columns[name]!r} and {column!r}); keep one")
        columns[name] = column
    return columns
