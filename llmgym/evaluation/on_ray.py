"""Work on a cluster of Ray: items are its tasks, and one whose worker is killed is done again elsewhere."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from llmgym.core.checks import whole
from llmgym.errors import LlmgymError
from llmgym.evaluation.backends import Found, Item, Tell, Work, silent
from llmgym.policies.cluster import connect
from llmgym.version import __version__

RETRIES = 4
"""How often an item is done again whose worker was killed. One that kills its worker each time must come to an end."""


def there(version: str, work: Work[Item, Found], item: Item) -> Found:
    """Do the work of an item in a worker, if that has the same llmgym."""
    if version != __version__:
        raise LlmgymError(
            f"a worker of the cluster has llmgym {__version__}, this is {version}: install the same on all machines"
        )
    return work(item, silent)


class OnRay:
    """Does items as tasks of Ray; use it as a context manager.

    Args:
        workers: how many at once; None: as many as the cluster has cores.
        address: of a cluster that runs; None: one on this machine, for the time being.

    Raises:
        InvalidArgument: no cluster answers at the address.
        MissingExtra: Ray is not installed.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        self._given = None if workers is None else whole("workers", workers)
        self._ray, self._connected = connect("the backend ray", "ray", workers, address)

    def __enter__(self) -> "OnRay":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._connected:
            self._ray.shutdown()

    @property
    def workers(self) -> int:
        """How many items are at work at once; a cluster may grow."""
        return self._given or max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def results(
        self, work: Work[Item, Found], items: Iterable[Item], tell: Tell
    ) -> Iterator[tuple[int, Found]]:
        """See `Backend.results`.

        Raises:
            LlmgymError: an item has killed its worker again and again, or the workers lack something.
            KeyboardInterrupt: Ctrl-C was pressed; what runs is ended.
        """
        ray = self._ray
        task = ray.remote(there).options(num_cpus=1, max_retries=RETRIES)
        waiting: dict[Any, int] = {}
        more, done = enumerate(items), 0
        try:
            while True:
                for number, item in itertools.islice(more, max(0, self.workers - len(waiting))):
                    waiting[task.remote(__version__, work, item)] = number
                if not waiting:
                    return
                (ready,), _ = ray.wait(list(waiting), num_returns=1)
                found = self._found(ready)
                done += 1
                yield waiting.pop(ready), found
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped; {done} pieces of the work were done, and nothing of them is kept"
            ) from None
        finally:
            for left in waiting:
                ray.cancel(left, force=True)

    def _found(self, ready: Any) -> Any:
        ray = self._ray
        try:
            return ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ModuleNotFoundError) or "ModuleNotFoundError" in str(cause):
                raise LlmgymError(
                    f"a worker of the cluster lacks a module ({str(cause).strip().splitlines()[-1]}): install llmgym, and what "
                    "your policies and environments need, on all machines"
                ) from error
            raise cause from error
        except ray.exceptions.RayError as error:
            raise LlmgymError(
                f"a piece of the work was lost {RETRIES + 1} times with the worker that did it "
                f"({str(error).strip().splitlines()[0]}): it may need more memory than a worker has"
            ) from error
