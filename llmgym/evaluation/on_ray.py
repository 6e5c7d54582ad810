"""Work on a cluster of Ray: items are its tasks, and one whose worker is killed is done again elsewhere.

Ray is imported where it is used, not with this module, so that its absence is one clear line.
"""

import itertools
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from llmgym.core.checks import whole
from llmgym.errors import InvalidArgument, LlmgymError, MissingExtra
from llmgym.evaluation.backends import Found, Item, Tell, Work, silent
from llmgym.version import __version__

RETRIES = 4
"""How often an item is done again whose worker was killed. One that kills its worker each time must come to an end."""
STORE_BYTES = 128 * 2**20
"""Memory for objects of a cluster of our own: tables of episodes are small."""
ANSWER_S = 5.0
"""How long a cluster may take to answer."""


def import_ray(what: str) -> Any:
    """Ray, where it is installed.

    Args:
        what: needs it, for the message.

    Raises:
        MissingExtra: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what it warns of otherwise
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtra(what, "ray") from error
    return ray


def connect(what: str, workers: int | None, address: str | None) -> tuple[Any, bool]:
    """Ray, connected to a cluster.

    Args:
        what: needs it, for messages.
        workers: cores of a cluster of our own; None: all.
        address: of a cluster that runs; None: one of our own, on this machine.

    Returns:
        Ray, and whether the connection was made here (the program may have made one itself, which is used).

    Raises:
        InvalidArgument: no cluster answers at the address.
        MissingExtra: Ray is not installed.
    """
    ray = import_ray(what)
    if ray.is_initialized():
        return ray, False
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        own = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        ray.init(address="local", **own, **quiet)
        return ray, True
    check_answers(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise no_cluster(address, str(error).partition("\n")[0]) from error
    return ray, True


def check_answers(address: str) -> None:
    """Raise `InvalidArgument` where nobody answers at an address, which Ray would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise no_cluster(address, "expected host:port, ray://host:port or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise no_cluster(address, getattr(error, "strerror", None) or str(error)) from error


def no_cluster(address: str, why: str) -> InvalidArgument:
    """What is said where there is no cluster at an address."""
    return InvalidArgument(
        f"address={address!r}: no Ray cluster there ({why}); `ray start --head` prints the address of one that it starts"
    )


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
        self._ray, self._connected = connect("the backend ray", workers, address)

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
