"""How far a conversion is: a bar on a terminal, a line for each tenth elsewhere; on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from megatron_atesd.logs import is_told, tell


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that takes the number of bytes done since its last call, of `total` in all."""
    console = Console(stderr=True)
    if not (console.is_terminal and is_told()):
        yield _lines(what, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _lines(what: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if done * 10 // total > before * 10 // total:
            tell(f"{what}: {done * 100 // total} % of {total / 1e9:.3g} GB")

    return advance
