"""Which backend work is done by, as a name, a number of workers and an address say."""

import contextlib
import sys
from collections.abc import Iterator

from llmgym.core.checks import choice, whole
from llmgym.errors import InvalidArgument
from llmgym.evaluation.backends import HERE, Backend, Processes

BACKENDS = ("local", "ray")


@contextlib.contextmanager
def backend(name: str = "local", workers: int | None = None, address: str | None = None) -> Iterator[Backend]:
    """Where work is to be done.

    Args:
        name: `local` or `ray`.
        workers: items at work at once. None: with `local` 1, which is this process; with `ray` as many as there are cores.
        address: of a Ray cluster that runs: `host:port`, `ray://host:port`, or `auto` for the one that this machine belongs to.
            None: a cluster on this machine, for the time being.

    Yields:
        The backend; at the end of the block its processes are gone.

    Raises:
        InvalidArgument: a name that there is not, a bad number, an address without Ray, or one where no cluster answers.
        MissingExtra: Ray is not installed.
    """
    choice("backend", name, BACKENDS)
    if workers is not None:
        whole("workers", workers)
    if name == "ray":
        from llmgym.evaluation.on_ray import OnRay

        with OnRay(workers, address) as there:
            yield there
    elif address is not None:
        raise InvalidArgument(f"address={address!r}: only backend='ray' has one")
    elif workers in (None, 1):
        yield HERE
    else:
        assert workers is not None
        with Processes(workers) as processes:
            yield processes


@contextlib.contextmanager
def of_command(name: str, workers: int | None, address: str | None) -> Iterator[Backend]:
    """`backend` for a command, whose result alone belongs on stdout: what Ray tells of killed workers goes to stderr."""
    with contextlib.ExitStack() as stack:
        if name == "ray":
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield stack.enter_context(backend(name, workers, address))
