"""Who orders the requests of a measurement: vLLM, in its order of arrival or shortest first, or a deployed policy."""

import argparse
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scheduling:
    """Who orders the requests.

    Attributes:
        scheduler_cls: class of the scheduler, as a dotted path; None: vLLM's own.
        policy: what `llmgym.deploy.vllm.GymScheduler` takes; None: nothing is told to the scheduler.
        shortest: vLLM's own priorities, the predicted length being the priority.
    """

    scheduler_cls: str | None = None
    policy: str | None = None
    shortest: bool = False

    def arguments(self) -> dict[str, Any]:
        """Arguments of the engine."""
        own: dict[str, Any] = {}
        if self.scheduler_cls is not None:
            own["scheduler_cls"] = self.scheduler_cls
        if self.policy is not None:
            own["additional_config"] = {"llmgym": {"policy": self.policy, "report_every": 2_000}}
        if self.shortest:
            own["scheduling_policy"] = "priority"
        return own

    def options(self) -> list[str]:
        """The same on the command line."""
        said = ["--scheduler-cls", self.scheduler_cls] if self.scheduler_cls else []
        said += ["--policy", self.policy] if self.policy else []
        return said + (["--shortest"] if self.shortest else [])


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command line."""
    parser.add_argument(
        "--scheduler-cls", help="class of the scheduler, as a dotted path (default: vLLM's own)"
    )
    parser.add_argument("--policy", help="what llmgym.deploy.vllm.GymScheduler takes, such as policy.npz")
    parser.add_argument("--shortest", action="store_true", help="vLLM's priorities: the predicted length")


def chosen(parser: argparse.ArgumentParser, asked: argparse.Namespace, logged: bool) -> Scheduling:
    """What the options say; what does not go together ends the program.

    Args:
        parser: tells what is wrong.
        asked: the options.
        logged: whether there are cases whose steps are written down, which takes a scheduler of their own.
    """
    scheduling = Scheduling(asked.scheduler_cls, asked.policy, asked.shortest)
    if asked.scheduler_cls is not None and logged:
        parser.error("--scheduler-cls: cases that are logged have a scheduler of their own")
    if asked.policy is not None and asked.scheduler_cls is None:
        parser.error("--policy needs --scheduler-cls llmgym.deploy.vllm.GymScheduler")
    if asked.shortest and asked.scheduler_cls is not None:
        parser.error("--shortest is vLLM's own order, and goes without --scheduler-cls")
    return scheduling
