"""Saving on two ranks when something fails on one of them, and while training goes on."""

import os
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from megatron_atesd.checkpoint.reading import read_folder
from megatron_atesd.checkpoint.run_checkpoints import Saver, choose, fault_of
from megatron_atesd.checkpoint.save_queue import WriteResults
from megatron_atesd.config import CheckpointConfig
from megatron_atesd.errors import CheckpointError
from megatron_atesd.parallel.session import parallel_session
from tests.support.launch import run_distributed

pytestmark = pytest.mark.slow

SIZE = 50_000  # numbers a rank
CONFIG = CheckpointConfig(keep=0)
Fault = Callable[[Path, pytest.MonkeyPatch], Any]


@dataclass(frozen=True)
class Outcome:
    """What a rank saw: the refusal of each faulty save, what was left beside step_1 then, and values read back."""

    refusals: dict[str, str]
    left: dict[str, list[str]]
    still_valid: dict[str, bool]
    counted: float
    said: list[str]
    last_refusal: str
    background: bool
    faults: list[str | None]
    aside: list[str]
    kept: list[str]


def state(numbers: torch.Tensor) -> dict[str, Any]:
    return {"weights": ShardedTensor.from_rank_offsets("weights", numbers, (0, dist.get_rank(), 2)), "run": {"update": 1}}


def numbers() -> torch.Tensor:
    return torch.arange(SIZE, dtype=torch.float32) + dist.get_rank() * SIZE


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def no_space(*arguments: Any, **keywords: Any) -> None:
    raise OSError(ENOSPC, os.strerror(ENOSPC))


def tensors_of_rank_1(folder: Path, patch: pytest.MonkeyPatch) -> Any:
    return file_limit(SIZE if dist.get_rank() == 1 else resource.RLIM_INFINITY)


def plain_values(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "save", no_space)  # only rank 0 calls it in its own process


def room_for_the_answer_of_rank_1(folder: Path, patch: pytest.MonkeyPatch) -> None:
    if dist.get_rank() == 1:
        patch.setattr("megatron_atesd.checkpoint.save_queue._unnamed_file", no_space)


def answer_of_rank_1(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Its writer is ended in the middle of it."""
    if dist.get_rank() == 1:
        patch.setattr(WriteResults, "put", lambda results, _: os.write(results._descriptor, pickle.dumps([1, 2])[:-3]))


def metadata(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FileSystemWriterAsync, "finish", no_space)


def configuration(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("megatron_atesd.checkpoint.saving.write_format", no_space)


def checksum_list(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("megatron_atesd.checkpoint.saving.write_manifest", no_space)


def renaming(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("megatron_atesd.checkpoint.saving.os.replace", no_space)


def making_the_folder(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Path, "mkdir", no_space)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        *(tensors_of_rank_1, room_for_the_answer_of_rank_1, answer_of_rank_1),
        *(plain_values, metadata, configuration, checksum_list, renaming, making_the_folder),
    )
}
HIDDEN = ("tensors_of_rank_1", "answer_of_rank_1")  # torch and megatron.core hide the cause


def faulty_save(saver: Saver, folder: Path, fault: Fault) -> str:
    """The refusal of saving step_2, '' if there is none."""
    with pytest.MonkeyPatch.context() as patch, fault(folder, patch) or file_limit(resource.RLIM_INFINITY):
        try:
            saver.save(2, state(numbers()), folder / "hf", last=False)
        except CheckpointError as error:
            return str(error)
    return ""


def save_with_faults(folder: Path) -> Outcome:
    with parallel_session():
        checkpoints = folder / "checkpoints"
        saver = Saver(checkpoints, CONFIG, print)
        saver.save(1, state(numbers()), folder / "hf", last=False)
        refusals, left, still_valid = {}, {}, {}
        for name, fault in FAULTS.items():
            refusals[name] = faulty_save(saver, folder, fault)
            left[name] = sorted(path.name for path in checkpoints.iterdir())
            still_valid[name] = choose(checkpoints).folder == checkpoints / "step_1"
        return Outcome(refusals, left, still_valid, *go_on(folder), in_background(folder), damaged(folder), *back_and_keep(folder))


def go_on(folder: Path) -> tuple[float, list[str], str]:
    """With on_error continue: what is counted and said after a failed save, and the refusal when the last one fails."""
    said: list[str] = []
    saver = Saver(folder / "continued", replace(CONFIG, on_error="continue"), said.append)
    with pytest.MonkeyPatch.context() as patch:
        metadata(folder, patch)
        saver.save(1, state(numbers()), folder / "hf", last=False)
        with pytest.raises(CheckpointError) as refusal:
            saver.save(2, state(numbers()), folder / "hf", last=True)
    counted = saver.metrics()["checkpoint/failed"]
    saver.save(3, state(numbers()), folder / "hf", last=False)
    assert choose(folder / "continued").folder == folder / "continued" / "step_3"
    return counted, said, str(refusal.value)


def in_background(folder: Path) -> bool:
    """Whether a background save holds the values of its start, though they changed while it ran."""
    checkpoints, trained = folder / "background", numbers()
    saver = Saver(checkpoints, replace(CONFIG, background=True), print)
    saver.save(1, state(trained), folder / "hf", last=False)
    trained.zero_()
    saver.finish(wait=True)
    loaded = read_folder(checkpoints / "step_1", state(torch.empty(SIZE)))["weights"]
    return torch.equal(loaded, numbers())


def damaged(folder: Path) -> list[str | None]:
    """What the ranks say of a checkpoint before and after a bit of it is flipped, for each of its files."""
    target = folder / "checkpoints" / "step_1"
    faults = [fault_of(target)]
    for path in sorted(path for path in target.rglob("*") if path.is_file()):
        good = path.read_bytes()
        dist.barrier()
        if dist.get_rank() == 0:
            path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        dist.barrier()
        faults.append(fault_of(target))
        if dist.get_rank() == 0:
            path.write_bytes(good)
        dist.barrier()
    return faults


def back_and_keep(folder: Path) -> tuple[list[str], list[str]]:
    """The folders after going back from step_4 to save step_3, and after keeping one and every second."""
    checkpoints = folder / "kept"
    saver = Saver(checkpoints, replace(CONFIG, keep=1, keep_every=2), print)
    for update in (1, 2, 4, 3):
        saver.save(update, state(numbers()), folder / "hf", last=False)
    aside = sorted(path.name for path in checkpoints.iterdir())
    for update in (4, 5):
        saver.save(update, state(numbers()), folder / "hf", last=False)
    return aside, sorted(path.name for path in checkpoints.iterdir())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    folder = tmp_path_factory.mktemp("saves")
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text("{}")
    return run_distributed(save_with_faults, 2, folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_save_is_told_alike_on_all_ranks(outcomes: list[Outcome], fault: str) -> None:
    first, second = [outcome.refusals[fault] for outcome in outcomes]
    assert first == second
    assert "step_2 cannot be saved: " in first
    assert ("GiB are free there" if fault in HIDDEN else "No space left on device") in first
    assert "earlier checkpoints are untouched" in first


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_save_leaves_the_earlier_checkpoint_and_nothing_else(outcomes: list[Outcome], fault: str) -> None:
    assert outcomes[0].left[fault] == ["latest", "step_1"]
    assert outcomes[0].still_valid[fault]


def test_with_on_error_continue_a_failed_save_is_counted_and_told(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        assert outcome.counted == 1.0
        assert [text for text in outcome.said if "step_1 cannot be saved: [Errno 28] No space left" in text and "training goes on" in text]


def test_the_last_save_of_a_job_must_not_fail(outcomes: list[Outcome]) -> None:
    assert all("step_2 cannot be saved" in outcome.last_refusal for outcome in outcomes)


def test_a_background_save_holds_the_values_of_its_start(outcomes: list[Outcome]) -> None:
    assert all(outcome.background for outcome in outcomes)


def test_a_flipped_bit_in_any_file_is_told_alike_on_all_ranks(outcomes: list[Outcome]) -> None:
    """Whichever rank reads the file."""
    assert outcomes[0].faults == outcomes[1].faults
    untouched, *damaged = outcomes[0].faults
    assert untouched is None
    assert len(damaged) >= 7  # of each rank two files, of rank 0 the list, metadata, plain values and config.json
    assert None not in damaged


def test_a_run_that_went_back_sets_newer_checkpoints_aside(outcomes: list[Outcome]) -> None:
    assert outcomes[0].aside == ["latest", "step_2", "step_3", "step_4.aside"]


def test_the_newest_and_every_second_are_kept(outcomes: list[Outcome]) -> None:
    assert outcomes[0].kept == ["latest", "step_2", "step_4", "step_4.aside", "step_5"]
