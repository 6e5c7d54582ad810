"""What a measurement of room says: the best tuned rule, what knows the future, and which share of the difference policies get."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import InvalidArgument
from llmgym.evaluation.statistics import Interval, bootstrap
from llmgym.evaluation.tables import ResultTable, estimate, number

CLAIRVOYANT = "clairvoyant"
"""Label of the look ahead."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class RoomResult:
    """How much is left to win over the best tuned rule, on worlds that all of them played.

    Attributes:
        env_id: id of the environment.
        env_kwargs: arguments that all environments had in common.
        seeds: seed of each world, int64 [worlds].
        rules: return of each tuned rule, float64 [worlds], by its label; those that saw what a scheduler can.
        knowing: return of the clairvoyant and of the privileged baselines that were asked for, float64 [worlds], by label.
        tail: rule that goes on in the copies of the clairvoyant.
        stride: it decided at every so many decisions.
        horizon: decisions of the rule after which its copies were cut off; None: they were played to the end.
        points: values of each entry of a Box that it tried; None: all actions.
        device: where its copies were: `"cpu"`, or a GPU, such as `"cuda"`.
        metrics: mean of the headline metrics of the best rule and of the clairvoyant, by name.
        confidence: of all intervals, between 0 and 1.
        wall_s: time of the clairvoyant, seconds.
        date: ISO.
        version: of the package.
    """

    env_id: str
    env_kwargs: Mapping[str, Any]
    seeds: NDArray[np.int64]
    rules: Mapping[str, Floats]
    knowing: Mapping[str, Floats]
    tail: str
    stride: int = 1
    horizon: int | None = None
    points: int | None = None
    device: str = "cpu"
    metrics: Mapping[str, tuple[float, float]]
    confidence: float = 0.95
    wall_s: float
    date: str
    version: str

    @property
    def best(self) -> str:
        """The rule with the best mean return."""
        return max(self.rules, key=lambda name: float(self.rules[name].mean()))

    @property
    def top(self) -> str:
        """Who of those that know the future has the best mean return."""
        return max(self.knowing, key=lambda name: float(self.knowing[name].mean()))

    @property
    def gains(self) -> Floats:
        """What the best that knows the future gains over the best rule in each world, float64 [worlds]."""
        gains: Floats = self.knowing[self.top] - self.rules[self.best]
        return gains

    @property
    def gain(self) -> float:
        """Mean of the gains, in units of the return."""
        return float(self.gains.mean())

    @property
    def interval(self) -> Interval:
        """Of the mean gain."""
        return self.interval_of(self.gains)

    def interval_of(self, gains: Floats) -> Interval:
        """Bootstrap interval of a mean of gains, float64 [worlds]."""
        return bootstrap(gains, confidence=self.confidence)

    @property
    def percent(self) -> float:
        """The gain as a share of the size of the best rule's mean return, %; NaN where that is 0."""
        return self.percent_of(self.gain)

    def percent_of(self, gain: float) -> float:
        """A gain as a share of the size of the best rule's mean return, %; NaN where that is 0."""
        size = abs(float(self.rules[self.best].mean()))
        return 100.0 * gain / size if size else math.nan

    def share(self, gain: float, reference: Floats, seeds: NDArray[np.int64]) -> float:
        """Which share of the room a policy gets: its gain over a reference, of what knowing the future gains over the same one.

        Args:
            gain: of the policy, mean difference of returns to the reference.
            reference: returns of the reference, float64 [episodes].
            seeds: of these episodes, int64 [episodes].

        Returns:
            1 for all of it; negative for a policy that loses. NaN where the room was not measured on these worlds, and where
            there is none: the interval of what the best that knows the future gains over the reference is not above 0.
        """
        _, here, there = np.intersect1d(self.seeds, seeds, return_indices=True)
        if len(here) < 2:
            return math.nan
        room = self.knowing[self.top][here] - reference[there]
        return gain / float(room.mean()) if self.interval_of(room).low > 0.0 else math.nan

    def check(self, env_id: str, env_kwargs: Mapping[str, Any]) -> None:
        """Raise `InvalidArgument` if it was measured in another environment, or with other arguments."""
        mine, theirs = (
            json.dumps([name, dict(kwargs)], sort_keys=True, default=str)
            for name, kwargs in ((self.env_id, self.env_kwargs), (env_id, env_kwargs))
        )
        if mine != theirs:
            raise InvalidArgument(f"room: it was measured in {mine}, and these are episodes of {theirs}")

    def note(self, reference: str) -> str:
        """What a share of the room is, one line; `reference` is the policy that others are compared with."""
        return (
            f"Share of the room: the difference to {reference}, of what {self.top} † gains over it on the {len(self.seeds)} worlds "
            f"on which that was measured (over {self.best} {estimate(self.gain, self.interval, sign=True)}, "
            f"{number(self.percent, 1)} %). That knows what is to come: nobody need get all of it."
        )

    def table(self) -> ResultTable:
        """A row for each who knows the future, with its gain over the best rule; `print` it."""
        level = f"{100 * self.confidence:g}% CI"
        columns = ["policy", "return", f"gain over {self.best} [{level}]", "%", "worlds better"]
        best = self.rules[self.best]
        rows = []
        for name in sorted(self.knowing, key=lambda name: -float(self.knowing[name].mean())):
            gains = self.knowing[name] - best
            mean = float(gains.mean())
            told = estimate(mean, self.interval_of(gains), sign=True)
            better = f"{int((gains > 0).sum())} of {len(gains)}"
            rows.append(
                [
                    f"{name} †",
                    number(float(self.knowing[name].mean())),
                    told,
                    number(self.percent_of(mean), 1),
                    better,
                ]
            )
        for name in sorted(self.rules, key=lambda name: -float(self.rules[name].mean())):
            gains = self.rules[name] - best
            told = (
                "best rule"
                if name == self.best
                else estimate(float(gains.mean()), self.interval_of(gains), sign=True)
            )
            rows.append([name, number(float(self.rules[name].mean())), told, "", ""])
        return ResultTable(self.title, columns, rows, self.notes())

    @property
    def title(self) -> str:
        """The environment and the worlds, one line."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.env_kwargs.items())
        worlds = f"{len(self.seeds)} worlds, seeds {self.seeds[0]}-{self.seeds[-1]}"
        return f"Room in {self.env_id}{f' ({given})' if given else ''}: {worlds}"

    def notes(self) -> list[str]:
        """How the clairvoyant played, and what it did to the headline metrics."""
        how = "every decision" if self.stride == 1 else f"one decision in {self.stride}"
        ends = "to the end" if self.horizon is None else f"for {self.horizon} decisions"
        tried = (
            "every allowed action"
            if self.points is None
            else f"{self.points} values of each entry of the action"
        )
        where = "" if self.device == "cpu" else f" on {self.device}"
        notes = [
            f"{CLAIRVOYANT}: at {how} {tried} in a copy of the world{where}, {self.tail} going on {ends}. It knows what is to "
            "come: a lower bound of what that is worth, and no promise for a policy that does not.",
            "%: of the size of the best rule's mean return. Rules were tuned on worlds of their own.",
        ]
        if self.metrics:
            told = "; ".join(
                f"{name} {number(rule)} to {number(top)}" for name, (rule, top) in self.metrics.items()
            )
            notes.append(f"From {self.best} to {CLAIRVOYANT}: {told}.")
        return notes

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything as JSON, written to a file where one is named; `RoomResult.read` reads it back."""
        whole = {field.name: getattr(self, field.name) for field in fields(self)}
        whole["env_kwargs"] = dict(self.env_kwargs)
        whole["seeds"] = self.seeds.tolist()
        for name in ("rules", "knowing"):
            whole[name] = {label: returns.tolist() for label, returns in getattr(self, name).items()}
        whole["metrics"] = {
            name: [None if math.isnan(one) else one for one in pair] for name, pair in self.metrics.items()
        }
        text = json.dumps(whole, indent=1)
        if path is not None:
            Path(path).write_text(text + "\n")
        return text

    @classmethod
    def read(cls, path: str | Path) -> "RoomResult":
        """A measurement from the file that `to_json` wrote.

        Raises:
            InvalidArgument: the file is not there, or is none of these.
        """
        try:
            whole = json.loads(Path(path).read_text())
            for name in ("rules", "knowing"):
                whole[name] = {label: np.array(returns, np.float64) for label, returns in whole[name].items()}
            whole["seeds"] = np.array(whole["seeds"], np.int64)
            whole["metrics"] = {
                name: (_nan(pair[0]), _nan(pair[1])) for name, pair in whole["metrics"].items()
            }
            return cls(**whole)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidArgument(f"room={str(path)!r}: no measurement of room: {error}") from error


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
