"""Responses on disk: nothing that was finished is lost, whatever a kill leaves of the last line."""

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_atesd.errors import AtesdError, ConfigError
from megatron_atesd.evaluate import responses
from megatron_atesd.evaluate.grading import Grader
from megatron_atesd.evaluate.responses import Answered, ResponseReader, ResponseWriter, finish
from megatron_atesd.evaluate.watch import Watch, progress_text
from tests.support.patience import PATIENCE

PROBLEMS: Any = [SimpleNamespace(id=f"p{i}", answer=str(i)) for i in range(4)]
SAMPLES = 2
ALL = [Answered(p, s, f"ü \\boxed{{{p if s else 9}}}\n", 3 + s, s > 0, s > 0 and p > 1) for p in range(4) for s in range(-1, SAMPLES)]


def reader(out: Path) -> ResponseReader:
    return ResponseReader(out, PROBLEMS, SAMPLES)


def written(out: Path, rank: int, *these: Answered) -> Path:
    with ResponseWriter(out, rank, PROBLEMS) as writer:
        for a in these:
            writer.write(a)
    return out / "unfinished" / f"rank_{rank}.jsonl"


def test_a_response_is_on_disk_when_it_is_written(tmp_path: Path) -> None:
    with ResponseWriter(tmp_path, 3, PROBLEMS) as writer:
        writer.write(ALL[5])
        assert reader(tmp_path).read_on() == [ALL[5]]


def test_wherever_a_line_is_torn_the_others_are_read_and_writing_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path, 0, ALL[0], ALL[1])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        left = [ALL[0], ALL[1]][: whole[:cut].count(b"\n")]
        assert reader(tmp_path).read_on() == left
        written(tmp_path, 0, ALL[2])
        also = [ALL[int(cut > first)]] if cut in (first - 1, len(whole) - 1) else []  # torn off was the line's end alone
        assert reader(tmp_path).read_on() == [*left, *also, ALL[2]]


def test_a_line_still_in_the_writing_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path, 0, ALL[0], ALL[1])
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    reading = reader(tmp_path)
    assert reading.read_on() == [ALL[0]]
    path.write_bytes(whole)
    assert reading.read_on() == [ALL[1]]
    assert reading.read_on() == []


@pytest.mark.parametrize(
    "change",
    [
        {"id": "p0"},
        {"problem": 4},
        {"problem": -3, "id": "p1"},
        {"sample": SAMPLES},
        {"sample": -2},
        {"text": None},
        {"tokens": "3"},
        {"truncated": 0},
        {"loop": 1},
    ],
)
def test_a_line_of_something_else_is_passed_over(tmp_path: Path, change: dict[str, Any]) -> None:
    path = written(tmp_path, 0, ALL[4])
    line = json.loads(path.read_bytes())
    path.write_text(json.dumps(line | change) + "\n")
    assert reader(tmp_path).read_on() == []
    path.write_text(json.dumps(line) + "\n")
    assert reader(tmp_path).read_on() == [ALL[4]]


def test_a_line_from_before_loops_were_kept_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, 0, ALL[4])
    line = json.loads(path.read_bytes())
    del line["loop"]
    path.write_text(json.dumps(line) + "\n")
    assert reader(tmp_path).read_on() == [replace(ALL[4], loop=None)]


def test_of_two_lines_for_one_response_the_first_counts(tmp_path: Path) -> None:
    written(tmp_path, 0, ALL[0])
    written(tmp_path, 1, Answered(0, -1, "other", 1, False), ALL[1])
    assert reader(tmp_path).read_on() == [ALL[0], ALL[1]]


def killed_and_finished(out: Path, draw: random.Random, kills: int) -> None:
    """An evaluation as ranks run it, one after the other here; each start has another number of them and ends at some write."""
    for start in range(kills + 1):
        there = reader(out)
        there.read_on()
        missing = [a for a in ALL if a.key not in there.found]
        draw.shuffle(missing)
        ranks = draw.randint(1, 4)
        for rank in range(ranks):
            mine = missing[rank::ranks]
            path = written(out, rank, *mine[: draw.randint(0, 1) if start < kills else None])
            if start < kills and draw.random() < 0.5:
                with path.open("ab") as file:
                    file.write(responses.line_of(draw.choice(ALL), PROBLEMS)[: draw.randint(1, 40)])
    answered = reader(out).read_all()
    finish(out, answered, [a.sample > 0 for a in answered], PROBLEMS, {"mean": 1.5})


def test_killed_ten_times_and_never_killed_leave_the_same_files(tmp_path: Path) -> None:
    killed_and_finished(tmp_path / "once", random.Random(0), 0)
    for seed in range(20):
        killed_and_finished(tmp_path / str(seed), random.Random(seed), 10)
        for name in ("responses.jsonl", "evaluation.json"):
            assert (tmp_path / str(seed) / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
        assert sorted(os.listdir(tmp_path / str(seed))) == ["evaluation.json", "responses.jsonl"]


def test_a_finished_evaluation_is_read_from_its_one_file(tmp_path: Path) -> None:
    killed_and_finished(tmp_path, random.Random(0), 0)
    assert reader(tmp_path).read_all() == ALL


@pytest.mark.parametrize("lost", ["evaluation.json.partial", "evaluation.json", "unfinished"])
def test_killed_while_the_results_are_written_nothing_is_lost(tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 0, *ALL)

    def killed(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def or_killed(path: Path, *rest: Any, **more: Any) -> Any:
            if path.name == name:
                raise KeyboardInterrupt
            return step(path, *rest, **more)

        return or_killed

    partial = "evaluation.json.partial"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", killed(partial if lost == partial else "", Path.write_bytes))
        patch.setattr(Path, "replace", killed(partial if lost == "evaluation.json" else "", Path.replace))
        patch.setattr(responses.shutil, "rmtree", killed("unfinished", responses.shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path, ALL, [True] * len(ALL), PROBLEMS, {})
    assert reader(tmp_path).read_all() == ALL


def test_responses_that_rank_0_does_not_see_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "LATE_SECONDS", 0.0)
    written(tmp_path, 0, *ALL[:9])
    with pytest.raises(AtesdError, match=r"3 of 12 responses are not in .* is it on a file system that all nodes share"):
        reader(tmp_path).read_all()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "rank_0.jsonl").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
        written(tmp_path, 0, ALL[0])


def test_all_ranks_responses_are_graded_while_they_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, 0, *ALL[:5])
    reading = reader(tmp_path)
    reading.read_on()
    with Grader(1, 5.0) as grader:
        with Watch(reading, grader, PROBLEMS, 2) as watch:
            written(tmp_path, 0, *ALL[5:7])
            written(tmp_path, 1, *ALL[7:])
            end = time.monotonic() + PATIENCE
            while len(watch.right) < len(ALL) and time.monotonic() < end:
                time.sleep(0.01)
        assert len(watch.right) == len(ALL)
        assert watch.verdicts(reading.read_all()) == [a.sample != 0 for a in ALL]
    assert capsys.readouterr().err.splitlines()[-1].startswith("12/12 responses, ")


def test_what_ends_the_watching_ends_the_evaluation(tmp_path: Path) -> None:
    class Broken:
        def grade(self, items: Any) -> list[bool]:
            raise AtesdError("the grading process did not start")

    written(tmp_path, 0, *ALL)
    reading = reader(tmp_path)
    broken: Any = Broken()
    reading.read_on()
    watch = Watch(reading, broken, PROBLEMS, 2)
    with watch:
        pass
    with pytest.raises(AtesdError, match="did not start"):
        watch.verdicts(ALL)


def test_the_line_of_progress() -> None:
    """Of 200, 20 were there at the start with 1,000 tokens; 60 s later there are 80: 120 are left, at one a second."""
    text = progress_text((80, 7000), (20, 1000), 200, 60.0, [True, True, False, False, True])
    assert text == "80/200 responses, 100 tokens/s, about 0:02:00 left, 60.0 % right of 5 graded"
    assert progress_text((20, 1000), (20, 1000), 200, 60.0, []) == "20/200 responses"
    assert progress_text((200, 7000), (20, 1000), 200, 60.0, [True]) == "200/200 responses, 100 tokens/s, 100.0 % right of 1 graded"
