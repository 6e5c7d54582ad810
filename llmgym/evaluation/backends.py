"""Where work is done: in this process, in several processes of this machine, or on a cluster of Ray.

What is done never depends on where. Work is cut into items beforehand, each is done in one piece, and results come back with the
number of their item, in whatever order they are ready.

    with backend("ray", workers=2) as there:
        compare("llmgym/KVQueue-v1", backend=there)
"""

import itertools
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from llmgym.core.checks import whole
from llmgym.errors import InvalidArgument, LlmgymError

Item = TypeVar("Item")
Found = TypeVar("Found")
Item_contra = TypeVar("Item_contra", contravariant=True)
Found_co = TypeVar("Found_co", covariant=True)

Tell = Callable[[int, int, int], None]
"""Told of progress within an item: what has ended, what runs, and the steps that this has run."""


class Work(Protocol[Item_contra, Found_co]):
    """A function of a module, which other processes find under its name."""

    def __call__(self, item: Item_contra, tell: Tell, /) -> Found_co:
        """Do the work of an item."""
        ...


class Backend(Protocol):
    """Does work on items.

    Attributes:
        workers: how many items are at work at once.
    """

    @property
    def workers(self) -> int:
        """How many items are at work at once."""
        ...

    def results(
        self, work: Work[Item, Found], items: Iterable[Item], tell: Tell
    ) -> Iterator[tuple[int, Found]]:
        """Do the work.

        Args:
            work: does that of one item. What it raises ends all.
            items: taken one by one, whenever there is room for one more.
            tell: of progress within an item, if that is in this process.

        Yields:
            The number of an item, from 0 in the order in which they were taken, and what its work gave, as soon as it is there.
        """
        ...


def silent(ended: int, running: int, steps: int) -> None:
    """Tell nobody of progress."""


class Here:
    """Does one item after the other, in this process."""

    workers = 1

    def results(
        self, work: Work[Item, Found], items: Iterable[Item], tell: Tell
    ) -> Iterator[tuple[int, Found]]:
        """See `Backend.results`."""
        for number, item in enumerate(items):
            yield number, work(item, tell)


HERE = Here()


def begin_process() -> None:
    """Have a process of the pool leave Ctrl-C to the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Processes:
    """Does items in processes of this machine; use it as a context manager.

    Args:
        workers: how many processes.
    """

    def __init__(self, workers: int) -> None:
        self.workers = whole("workers", workers)
        # numba and torch have threads, which a forked process would not have
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self.workers, context, begin_process)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self._pool.shutdown()
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list((self._pool._processes or {}).values()):
            process.terminate()

    def results(
        self, work: Work[Item, Found], items: Iterable[Item], tell: Tell
    ) -> Iterator[tuple[int, Found]]:
        """See `Backend.results`.

        Raises:
            InvalidArgument: an item cannot be sent to another process.
            LlmgymError: a process has died.
        """
        waiting: dict[Future[Found], int] = {}
        more = enumerate(items)
        try:
            while True:
                for number, item in itertools.islice(more, self.workers - len(waiting)):
                    waiting[self._pool.submit(work, item, silent)] = number
                if not waiting:
                    return
                ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise LlmgymError(
                "a process has died and its work is lost (the system kills the largest one where memory is short): "
                "take fewer --workers; with --backend ray such work is done again"
            ) from error
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            if "pickle" not in str(error):
                raise
            raise InvalidArgument(
                f"{error}: an object that several processes are to use must be one of a module; with one worker any will do"
            ) from error
