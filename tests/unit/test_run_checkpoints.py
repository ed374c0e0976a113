"""Which checkpoint a run goes on from, which ones are deleted, and what a kill amid a rename leaves."""

import os
import signal
from pathlib import Path

import pytest

from megatron_atesd.checkpoint.folders import clean, recover, replace_folder
from megatron_atesd.checkpoint.manifest import MANIFEST, checksums, listed_files, write_manifest
from megatron_atesd.checkpoint.run_checkpoints import Saver, check_fresh, choose, fault_of, set_aside, start_from, step_folders, superfluous
from megatron_atesd.config import CheckpointConfig
from megatron_atesd.errors import CheckpointError, TrainingError
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.preemption import StopRequest


def checkpoint(folder: Path, content: str = "weights") -> Path:
    """A folder with a file and its checksums."""
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "__0_0.distcp").write_text(content)
    write_manifest(folder, checksums(folder, listed_files(folder)))
    return folder


def damage(folder: Path) -> None:
    (folder / "weights" / "__0_0.distcp").write_text("weighty")


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for step in (2, 4, 10):
        checkpoint(tmp_path / f"step_{step}")
    return tmp_path


def test_the_newest_is_the_highest_number(three: Path) -> None:
    assert choose(three).folder == three / "step_10"


def test_a_damaged_checkpoint_is_left_out_and_the_reason_told(three: Path) -> None:
    damage(three / "step_10")
    choice = choose(three)
    assert choice.folder == three / "step_4"
    assert choice.why.startswith("step_10 is left out: ")
    assert "weights/__0_0.distcp: its checksum differs" in choice.why


def test_a_checkpoint_without_checksums_is_left_out(three: Path) -> None:
    (three / "step_10" / MANIFEST).unlink()
    assert choose(three).folder == three / "step_4"


def test_latest_has_no_say(three: Path) -> None:
    (three / "latest").write_text("step_2\n")
    assert choose(three).folder == three / "step_10"


@pytest.mark.parametrize("name", ["step_12.0a1b2c3d.partial", "step_12.removed", "step_12.replaced", "step_12.aside", "step_12x"])
def test_what_a_kill_leaves_is_no_checkpoint(three: Path, name: str) -> None:
    checkpoint(three / name)
    assert choose(three).folder == three / "step_10"


def test_without_any_valid_one_nothing_starts_anew(three: Path) -> None:
    for folder in step_folders(three):
        damage(folder)
    with pytest.raises(CheckpointError, match=r"no valid checkpoint.*step_10 is left out.*step_4 is left out.*step_2 is left out"):
        choose(three)


def test_without_any_checkpoint_the_run_starts(tmp_path: Path) -> None:
    assert choose(tmp_path / "checkpoints").folder is None


def test_an_older_one_can_be_named(three: Path) -> None:
    assert choose(three, "step_4").folder == three / "step_4"


def test_a_named_one_that_is_not_there_is_refused(three: Path) -> None:
    with pytest.raises(CheckpointError, match=r"resume is step_3, but .* holds step_10, step_4, step_2"):
        choose(three, "step_3")


def test_a_named_one_that_is_damaged_is_refused(three: Path) -> None:
    damage(three / "step_4")
    with pytest.raises(CheckpointError, match="its checksum differs"):
        choose(three, "step_4")


@pytest.mark.parametrize(
    ("keep", "keep_every", "deleted"), [(0, 0, []), (1, 0, [3, 2, 1]), (2, 0, [2, 1]), (1, 2, [3, 1]), (0, 2, []), (9, 0, [])]
)
def test_what_is_superfluous(keep: int, keep_every: int, deleted: list[int], tmp_path: Path) -> None:
    folders = [tmp_path / f"step_{step}" for step in (4, 3, 2, 1)]
    assert superfluous(folders, keep, keep_every) == [tmp_path / f"step_{step}" for step in deleted]


def test_the_best_is_never_superfluous(tmp_path: Path) -> None:
    folders = [tmp_path / f"step_{step}" for step in (4, 3, 2, 1)]
    assert superfluous(folders, keep=1, keep_every=0, best=2) == [tmp_path / "step_3", tmp_path / "step_1"]


def killed_at(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.replace works `calls` times, then the process dies."""
    replace, left = os.replace, [calls]

    def dying(source: Path, target: Path) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_kill_amid_replacing_leaves_one_of_the_two(calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, new = checkpoint(tmp_path / "step_2", "old"), checkpoint(tmp_path / "step_2.0a1b2c3d.partial", "new")
    with monkeypatch.context() as patch:
        killed_at(calls, patch)
        if calls < 3:
            with pytest.raises(KeyboardInterrupt):
                replace_folder(new, final)
        else:
            replace_folder(new, final)
    recover(tmp_path)
    assert fault_of(final) is None
    assert (final / "weights" / "__0_0.distcp").read_text() == ("old" if calls < 2 else "new")
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_and_named(number: signal.Signals) -> None:
    with parallel_session(), StopRequest() as stop:
        before = stop.agreed()
        os.kill(os.getpid(), number)
        assert (before, stop.agreed()) == ("", number.name)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]


def test_handlers_are_put_back() -> None:
    before = handlers()
    with StopRequest():
        assert handlers() != before
    assert handlers() == before


def test_going_back_loses_no_checkpoint_however_often(three: Path) -> None:
    for _ in range(2):
        set_aside(three, 4)
        assert [folder.name for folder in step_folders(three)] == ["step_4", "step_2"]
        checkpoint(three / "step_10")
    assert {path.name for path in three.iterdir()} == {"step_2", "step_4", "step_10", "step_10.aside", "step_10.aside.2"}


def test_a_named_checkpoint_counts_for_the_first_start_of_a_job(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_from(three, "step_2").folder == three / "step_2"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert start_from(three, "step_2").folder == three / "step_10"


def test_never_refuses_also_what_a_kill_left_under_another_name(tmp_path: Path) -> None:
    check_fresh(tmp_path)
    assert start_from(tmp_path, "never").folder is None
    checkpoint(tmp_path / "step_6.replaced")
    with pytest.raises(CheckpointError, match=r"already holds step_6\.replaced"):
        check_fresh(tmp_path)


def test_an_error_of_all_ranks_waits_for_the_save_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[bool] = []
    saver = Saver(tmp_path, CheckpointConfig(), print)
    monkeypatch.setattr(saver, "finish", lambda wait: waits.append(wait))
    with pytest.raises(TrainingError), saver:
        raise TrainingError("broken weights")
    with pytest.raises(RuntimeError), saver:
        raise RuntimeError("of this rank alone: the others would not come")
    assert waits == [True]
