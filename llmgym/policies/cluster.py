"""A cluster of Ray: one of our own on this machine, or one that runs.

Ray is imported where it is used, not with this module, so that its absence is one clear line.
"""

import os
import socket
from typing import Any

from llmgym.errors import InvalidArgument, MissingExtra

STORE_BYTES = 128 * 2**20
"""Memory for objects of a cluster of our own: tables of episodes are small."""
ANSWER_S = 5.0
"""How long a cluster may take to answer."""


def import_ray(what: str, extra: str) -> Any:
    """Ray, where it is installed.

    Args:
        what: needs it, for the message.
        extra: has it, for the message.

    Raises:
        MissingExtra: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what it warns of otherwise
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtra(what, extra) from error
    return ray


def import_rllib() -> None:
    """Raise `MissingExtra` where RLlib is not installed."""
    import_ray("the backend rllib", "rllib")
    try:
        import ray.rllib  # noqa: F401
    except ImportError as error:  # of something that it needs, or what it says of that
        raise MissingExtra("the backend rllib", "rllib") from error


def connect(what: str, extra: str, workers: int | None, address: str | None) -> tuple[Any, bool]:
    """Ray, connected to a cluster.

    Args:
        what: needs it, for messages.
        extra: has it, for messages.
        workers: cores of a cluster of our own; None: all.
        address: of a cluster that runs; None: one of our own, on this machine.

    Returns:
        Ray, and whether the connection was made here (the program may have made one itself, which is used).

    Raises:
        InvalidArgument: no cluster answers at the address.
        MissingExtra: Ray is not installed.
    """
    ray = import_ray(what, extra)
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
