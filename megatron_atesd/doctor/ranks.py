"""Whether all ranks are one job: equal settings, code and versions, clocks that agree, one file system. Rules on what the ranks told."""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from megatron_atesd.config import TrainConfig, package_versions
from megatron_atesd.doctor.finding import Finding, name_ranks

ROOT = Path(__file__).resolve().parents[2]
CODE = ("megatron_atesd", "checkpoints_convert", "tools")
# torchrun takes a node of several for dead when its heartbeat is 15 s old by the clock of another.
MAX_SKEW, NOTABLE_SKEW = 10.0, 2.0


@dataclass(frozen=True)
class RankFacts:
    """What a rank tells the others."""

    host: str
    config: dict[str, str]  # section: hash
    code: str
    versions: dict[str, str]
    gpu: bool  # whether it sees one


def own_facts(config: TrainConfig) -> RankFacts:
    """This rank's facts."""
    return RankFacts(platform.node(), config_hashes(config), code_hash(), package_versions(), torch.cuda.is_available())


def config_hashes(config: TrainConfig) -> dict[str, str]:
    """A hash of each section."""
    return {section: _hash(json.dumps(values, sort_keys=True).encode()) for section, values in asdict(config).items()}


def code_hash(root: Path = ROOT) -> str:
    """A hash of this project's Python files below `root`, names and text."""
    files = sorted(path.relative_to(root) for package in CODE for path in (root / package).rglob("*.py"))
    return _hash(b"\0".join(str(path).encode() + b"\0" + (root / path).read_bytes() for path in files))


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def check_ranks(facts: Sequence[RankFacts], clocks: Sequence[tuple[float, float]]) -> list[Finding]:
    """Findings about all ranks, given in rank order; for clocks see check_clocks."""
    return [
        *check_clocks(clocks, [fact.host for fact in facts]),
        *check_config([fact.config for fact in facts]),
        *check_equal("code", [fact.code for fact in facts], "files of this project differ from", "give all nodes the same checkout"),
        *check_rank_versions([fact.versions for fact in facts]),
        *check_gpus_everywhere([fact.gpu for fact in facts]),
        *show_hosts([fact.host for fact in facts]),
    ]


def check_clocks(clocks: Sequence[tuple[float, float]], hosts: Sequence[str]) -> list[Finding]:
    """An error for clocks that differ so much that torchrun would lose nodes, a warning for less.

    clocks: each rank's clock before and after one moment that all shared (seconds since the epoch). Clocks surely differ when one's
    before comes later than another's after; a rank that was kept waiting is no clock that differs.
    """
    fast = max(range(len(clocks)), key=lambda rank: clocks[rank][0])
    slow = min(range(len(clocks)), key=lambda rank: clocks[rank][1])
    skew = clocks[fast][0] - clocks[slow][1]
    if skew < NOTABLE_SKEW:
        apart = max(after for _, after in clocks) - min(before for before, _ in clocks)
        return [Finding("information", "clocks", f"at most {apart:.2f} s apart")] if len(clocks) > 1 else []
    what = f"the clock of {hosts[fast]} (rank {fast}) is at least {skew:.1f} s ahead of that of {hosts[slow]} (rank {slow})"
    return [Finding("error" if skew > MAX_SKEW else "warning", "clocks", what, "let NTP (chrony, systemd-timesyncd) set the nodes' clocks")]


def check_config(hashes: Sequence[Mapping[str, str]]) -> list[Finding]:
    """An error for each section of the settings that is not the same on all ranks."""
    return _check_each("settings", hashes, "settings of section {} differ from", "give all nodes the same file and overrides")


def check_rank_versions(versions: Sequence[Mapping[str, str]]) -> list[Finding]:
    """An error for each package whose version is not the same on all ranks."""
    return _check_each("versions", versions, "versions of {} differ from", "give all nodes the same environment")


def _check_each(check: str, by_rank: Sequence[Mapping[str, str]], what: str, remedy: str) -> list[Finding]:
    names = dict.fromkeys(name for of_rank in by_rank for name in of_rank)
    return [f for name in names for f in check_equal(check, [of_rank.get(name, "") for of_rank in by_rank], what.format(name), remedy)]


def check_equal(check: str, values: Sequence[str], what: str, remedy: str) -> list[Finding]:
    """An error that names the ranks whose value is not that of most."""
    usual = Counter(values).most_common(1)[0][0]
    odd = [rank for rank, value in enumerate(values) if value != usual]
    return [Finding("error", check, f"{name_ranks(odd)}: {what} those of rank {values.index(usual)}", remedy)] if odd else []


def check_gpus_everywhere(gpu: Sequence[bool]) -> list[Finding]:
    """An error where some ranks see a GPU and others none: they would wait for each other in vain."""
    without = [rank for rank, sees in enumerate(gpu) if not sees]
    if len(without) in (0, len(gpu)):
        return []
    remedy = "mend the driver or the CUDA build of torch there (nvidia-smi), or leave these nodes out"
    return [Finding("error", "GPU", f"{name_ranks(without)} without a GPU, unlike the others", remedy)]


def show_hosts(hosts: Sequence[str]) -> list[Finding]:
    """Which ranks are where."""
    ranks = {host: [rank for rank, other in enumerate(hosts) if other == host] for host in dict.fromkeys(hosts)}
    return [Finding("information", "hosts", f"{host}: {name_ranks(ranks[host])}") for host in ranks]
