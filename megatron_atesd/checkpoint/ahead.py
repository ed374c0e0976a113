"""Making the next piece while the one before is written: reading waits for one disk, writing for another or for the processor."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def made_ahead(makers: Iterable[Callable[[], Made]]) -> Iterator[Made]:
    """What each of `makers` returns, in their order; one thread makes the next result while the caller uses one. Raises what they raise."""
    pending: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for make in makers:
                pending.append(pool.submit(make))
                if len(pending) > 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
