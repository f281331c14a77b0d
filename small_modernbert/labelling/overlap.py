"""Work of other threads beside the main one's: the next item is made, the last one is put away."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
_END: Any = object()


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items; each is made in a thread while the caller works on the one before it.

    Never more than one waits, so memory is flat. What making an item raises is raised here, in its
    turn. Close the iterator (contextlib.closing) where the loop may end early.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, "ahead") as pool:
        coming = pool.submit(next, iterator, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, iterator, _END)
            yield item


class Behind:
    """Does one thing at a time in a thread, in the order given. Use as a context manager.

    Leaving it waits for the last one, so what was begun is whole or has failed.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "behind")
        self._last: tuple[Future[None], Callable[[], None]] | None = None

    def do(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Start `work` once the one before it is done.

        Args:
            work: runs in the thread.
            then: called by the main thread, at the next `do` or at the end, if `work` succeeded.

        Raises:
            BaseException: what the work before this one raised.
        """
        self._settle()
        self._last = self._pool.submit(work), then

    def _settle(self) -> None:
        if self._last is not None:
            (future, then), self._last = self._last, None
            future.result()
            then()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the last work; its error counts unless another one is on its way already."""
        try:
            if kind is None:
                self._settle()
        finally:
            self._pool.shutdown()
