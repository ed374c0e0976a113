"""One split of a data set of the Hugging Face hub, through `datasets`, whose variables (HF_HOME, HF_TOKEN, …) and cache hold."""

import importlib
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from megatron_atesd.errors import DataError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"@([0-9a-f]{40})/")  # in the addresses of the files that were read


@dataclass(frozen=True)
class HubSplit:
    """The records of one split. config: of several in one data set; revision: a commit, tag or branch, "" the newest."""

    name: str
    split: str
    config: str = ""
    revision: str = ""

    @property
    def place(self) -> str:
        owner, _, short = self.name.partition("/")
        which = [f"{sign}{quote(word, safe='')}" for sign, word in (("+", self.config), ("@", self.revision)) if word]
        return f"hub/{owner}/{short}{''.join(which)}/{short}-{quote(self.split, safe='')}.jsonl"

    def fetch(self) -> tuple[str, Iterable[Mapping[str, Any]]]:
        """(origin with the commit, records). Raises DataError that says what to do."""
        if not _NAME.fullmatch(self.name) or Path(self.name).exists():
            raise DataError(f"{self.name} is no data set of the hub: give OWNER/NAME, or use the source jsonl for a file of your own")
        try:
            datasets = importlib.import_module("datasets")
        except ImportError:
            raise DataError("data sets of the hub need the library datasets: pip install -e '.[data]' in this project's checkout") from None
        logger = logging.getLogger("huggingface_hub")
        level = logger.level
        logger.setLevel(logging.ERROR)  # without a network it tells of each of its tries
        try:
            rows = datasets.load_dataset(self.name, self.config or None, split=self.split, revision=self.revision or None)
        except Exception as error:  # of datasets and of the libraries below it, which promise no common class
            raise DataError(self._refusal(error)) from None
        finally:
            logger.setLevel(level)
        commit = _COMMIT.search(" ".join(rows.info.download_checksums or {}))
        words = [self.name, f"commit {commit[1]}" if commit else self.revision, self.config, self.split]
        return ", ".join(filter(None, words)), rows

    def _refusal(self, error: Exception) -> str:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        said = " ".join(str(error).split())
        if "GatedRepoError" in kinds or "gated" in said:
            remedy = "accept its terms on its page of the hub, then log in: `hf auth login`, or set HF_TOKEN"
        elif "RepositoryNotFoundError" in kinds or "DatasetNotFoundError" in kinds:
            remedy = "check the name; a private data set needs `hf auth login`, or HF_TOKEN"
        elif "RevisionNotFoundError" in kinds:
            remedy = "check --revision"
        elif "ConnectionError" in kinds or "TransportError" in kinds or "LocalEntryNotFoundError" in kinds:
            remedy = "go online (and unset HF_HUB_OFFLINE), or copy the folder of --cache from a machine that has it"
        else:
            remedy = "check --split, --config and --revision"
        return f"{self.name} cannot be had from the hub ({said[:200] or type(error).__name__}): {remedy}"
