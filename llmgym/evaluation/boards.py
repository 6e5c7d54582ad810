"""Boards: the policies of one scenario on the same worlds, kept in a file, from which the leaderboard is written.

A file keeps the return and the headline metrics of every world, so everything that a comparison says can be said again without
playing, and another policy can enter later on the same worlds. Returns are kept to 12 significant digits, metrics to 7.
"""

import json
import math
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from llmgym import baselines
from llmgym.core.checks import choice
from llmgym.core.env import check_id
from llmgym.core.spec import env_ids, find
from llmgym.errors import CheckpointError, InvalidArgument, MissingExtra, UnknownName
from llmgym.evaluation import installed
from llmgym.evaluation.backends import HERE, Backend
from llmgym.evaluation.comparable import CHECKSUM, STRATA
from llmgym.evaluation.comparison import Comparison
from llmgym.evaluation.contenders import BASELINE, resolve, rules_of
from llmgym.evaluation.paired import compare
from llmgym.evaluation.rollout import EpisodeTable
from llmgym.evaluation.room_result import RoomResult
from llmgym.evaluation.tuning import tuned
from llmgym.version import __version__

RETURN_DIGITS, METRIC_DIGITS = 12, 7
"""Significant digits of what a file keeps of a world."""
_WORLDS = (CHECKSUM, *STRATA)
_NAMED = re.compile(r"(?P<id>.*-v\d+)(?:/(?P<scenario>.+))?")


@dataclass(frozen=True)
class Board:
    """One scenario of an environment.

    Attributes:
        env_id: id of the environment.
        scenario: name of the scenario; None: the environment's default.
        left_out: baselines that are not played, being too slow for many worlds.
    """

    env_id: str
    scenario: str | None
    left_out: tuple[str, ...] = ()

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Arguments of the environment."""
        return {} if self.scenario is None else {"scenario": self.scenario}

    @property
    def name(self) -> str:
        """`MemPlace-v0-small`: the name of its files. Another namespace than `llmgym` stands in front."""
        namespace, _, name = self.env_id.rpartition("/")
        parts = ("" if namespace == "llmgym" else namespace, name, self.scenario)
        return "-".join(part for part in parts if part)

    @property
    def title(self) -> str:
        """`llmgym/MemPlace-v0, small`."""
        return self.env_id if self.scenario is None else f"{self.env_id}, {self.scenario}"

    def rules(self) -> list[str]:
        """The baselines that are played."""
        return [name for name in rules_of(self.env_id) if name not in self.left_out]

    def learned(self) -> list[str]:
        """The shipped policies that were trained on this scenario; none, with a warning, where torch is not installed."""
        from llmgym import policies

        try:
            return [
                name
                for name in policies.names(self.env_id)
                if policies.meta(name)["env_kwargs"].get("scenario") == self.scenario
            ]
        except MissingExtra as error:
            warnings.warn(f"learned policies of {self.env_id} are left out: {error}", stacklevel=2)
            return []

    def installed(self) -> list[str]:
        """The policies of installed packages that can act here; a warning names the others."""
        fitting = []
        for name in installed.policies(self.env_id):
            try:
                contender = resolve(self.env_id, name)
                env = gymnasium.make_vec(
                    self.env_id, num_envs=1, **{**self.env_kwargs, **contender.env_kwargs}
                )
                contender.build(env.unwrapped)  # type: ignore[arg-type]
                env.close()
            except (InvalidArgument, CheckpointError, MissingExtra, TypeError) as error:
                warnings.warn(f"{self.title}: policy {name!r} is left out: {error}", stacklevel=2)
            else:
                fitting.append(name)
        return fitting

    def contenders(self) -> list[str]:
        """Names of all that play: baselines, shipped learned policies and those of installed packages."""
        return [*self.rules(), *self.learned(), *self.installed()]

    def room(self, folder: Path | None) -> RoomResult | None:
        """What there is to win here, where a folder has a measurement of it under this board's name."""
        path = None if folder is None else folder / f"{self.name}.json"
        return RoomResult.read(path) if path is not None and path.exists() else None

    def command(self, policies: Sequence[str], episodes: int, seed: int) -> str:
        """The shell command that plays such policies on these worlds again."""
        words = ["llmgym", "compare", self.env_id]
        words += [] if self.scenario is None else ["--scenario", self.scenario]
        words += ["--policies", *policies, "--episodes", str(episodes), "--seed", str(seed), "--no-tune"]
        return shlex.join(words)


def boards(only: Sequence[str] = ()) -> list[Board]:
    """The boards of all registered environments, in the order of their ids, or of those that are named.

    Args:
        only: `llmgym/MemPlace-v0` for all boards of an environment, `llmgym/MemPlace-v0/small` for one of its scenarios, published
            or not; `module:` stands in front where a module has to be imported that registers it.

    Raises:
        UnknownName: no such environment or scenario.
    """
    if not only:
        return [board for env_id in env_ids() for board in _of(env_id)]
    found: list[Board] = []
    for name in only:
        match = _NAMED.fullmatch(name)
        if match is None:
            raise UnknownName("environment", name, env_ids())
        env_id = check_id(match["id"])
        if match["scenario"] is None:
            found += _of(env_id)
            continue
        spec = find(env_id)
        scenario = choice("scenario", match["scenario"], spec.scenario_names() if spec else ())
        found.append(Board(env_id, scenario, baselines.boards(env_id).get(scenario, ())))
    return list(dict.fromkeys(found))


def _of(env_id: str) -> list[Board]:
    known = {None: ()} if find(env_id) is None else baselines.boards(env_id)
    return [Board(env_id, scenario, left) for scenario, left in known.items()]


def measure(
    board: Board,
    policies: Sequence[str] | None = None,
    *,
    episodes: int = 200,
    seed: int = 10_000,
    tune: bool = True,
    progress: bool = False,
    backend: Backend = HERE,
) -> Comparison:
    """Play a board.

    Args:
        board: what is played.
        policies: who plays; None: all its contenders.
        episodes: worlds, at least 2.
        seed: of the first world.
        tune: first tune the baselines that have a grid, on worlds of their own.
        progress: a bar on stderr, if that is a terminal.
        backend: where episodes are played; figures do not depend on it.

    Returns:
        The comparison, of the figures as a file keeps them.
    """
    names = list(board.contenders() if policies is None else policies)
    if tune and find(board.env_id) is not None:
        names = tuned(board.env_id, names, seed=seed, progress=False, backend=backend, **board.env_kwargs)
    result = compare(
        board.env_id, names, episodes=episodes, seed=seed, progress=progress, backend=backend,
        **board.env_kwargs,
    )  # fmt: skip
    return _comparison(board, [_kept(table) for table in result.tables.values()])


def joined(board: Board, first: Comparison, second: Comparison) -> Comparison:
    """One comparison of two on the same worlds; where both have a policy, that of the second counts.

    Raises:
        InvalidArgument: they were not on the same worlds.
    """
    return _comparison(board, list({**first.tables, **second.tables}.values()))


def missing(board: Board, known: Comparison, policies: Sequence[str] | None = None) -> list[str]:
    """Which contenders of a board, or of some that are named, have not played yet; a tuned rule counts under its plain name.

    Args:
        board: what is played.
        known: what was played.
        policies: names; None: all contenders of the board.
    """
    played = {
        name.partition(":")[0] if table.kind == BASELINE else name for name, table in known.tables.items()
    }
    names = board.contenders() if policies is None else policies
    return [name for name in names if name not in played and name not in known.tables]


def _comparison(board: Board, tables: Sequence[EpisodeTable]) -> Comparison:
    return Comparison(tables, env_kwargs=board.env_kwargs)


def with_room(result: Comparison, room: RoomResult | None) -> Comparison:
    """The same comparison, beside what there is to win."""
    if room is None:
        return result
    return Comparison(list(result.tables.values()), env_kwargs=result.env_kwargs, room=room)


def rounded(values: Any, digits: int) -> NDArray[np.float64]:
    """Numbers to so many significant digits, float64 of the same shape."""
    array = np.asarray(values, np.float64)
    flat = [float(f"{value:.{digits}g}") for value in array.ravel().tolist()]
    return np.array(flat, np.float64).reshape(array.shape)


def _kept(table: EpisodeTable) -> EpisodeTable:
    """What a file keeps of episodes: returns, the headline metrics, and what tells worlds from each other."""
    from llmgym.evaluation.comparable import with_means

    headline = with_means(table.headline, table.metrics)
    metrics = {
        name: table.metrics[name] if name in _WORLDS else rounded(table.metrics[name], METRIC_DIGITS)
        for name in (*headline, *(name for name in _WORLDS if name in table.metrics and name not in headline))
    }
    return _table(
        policy=table.policy,
        kind=table.kind,
        privileged=table.privileged,
        clairvoyant=table.clairvoyant,
        privileged_observation=table.privileged_observation,
        other_world=table.other_world,
        env_id=table.env_id,
        env_kwargs={},
        seeds=table.seeds,
        returns=rounded(table.returns, RETURN_DIGITS),
        metrics=metrics,
        headline=headline,
    )


def _table(*, seeds: NDArray[np.int64], **others: Any) -> EpisodeTable:
    """Episodes without what no board needs: how many decisions there were, and how long everything took."""
    count = len(seeds)
    return EpisodeTable(
        source=others["policy"],
        seeds=seeds,
        steps=np.zeros(count, np.int64),
        simulated_s=np.full(count, math.nan),
        terminated=np.zeros(count, np.bool_),
        truncated=np.zeros(count, np.bool_),
        wall_s=math.nan,
        act_s=math.nan,
        calls=0,
        **others,
    )


_MARKS = ("kind", "privileged", "clairvoyant", "privileged_observation", "other_world")


def write(board: Board, result: Comparison, path: Path) -> None:
    """Write what was played to a file, a line a policy, so that versions of it can be told apart line by line."""
    first = next(iter(result.tables.values()))
    head = {
        "environment": board.env_id,
        "scenario": board.scenario,
        "version": __version__,
        "left_out": list(board.left_out),
        "first_seed": int(first.seeds[0]),
        "better": dict(first.headline),
        "worlds": {name: first.metrics[name].tolist() for name in _WORLDS if name in first.metrics},
    }
    lines = [f" {json.dumps(name)}: {json.dumps(_plain(value))}," for name, value in head.items()]
    rows = [
        json.dumps(
            {
                "policy": table.policy,
                **{name: getattr(table, name) for name in _MARKS if getattr(table, name)},
                "returns": table.returns.tolist(),
                "metrics": _plain(
                    {name: table.metrics[name].tolist() for name in table.headline if name not in _WORLDS}
                ),
            },
            ensure_ascii=False,
        )
        for table in result.tables.values()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    body = ",\n  ".join(rows)
    path.write_text("\n".join(["{", *lines, f' "policies": [\n  {body}\n ]', "}"]) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: str | Path) -> tuple[Board, Comparison]:
    """The board of a file, and what was played.

    Raises:
        InvalidArgument: the file is not there, or is none that `write` wrote.
    """
    try:
        whole = json.loads(Path(path).read_text(encoding="utf-8"))
        board = Board(whole["environment"], whole["scenario"], tuple(whole["left_out"]))
        worlds = {name: np.array(values, np.float64) for name, values in whole["worlds"].items()}
        tables = [_row(board, row, whole, worlds) for row in whole["policies"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidArgument(f"board {str(path)!r}: no file of the leaderboard: {error}") from error
    return board, _comparison(board, tables)


def _row(
    board: Board, row: dict[str, Any], whole: dict[str, Any], worlds: dict[str, NDArray[np.float64]]
) -> EpisodeTable:
    returns = np.array(row["returns"], np.float64)
    metrics = {name: np.array(values, np.float64) for name, values in row["metrics"].items()}
    return _table(
        policy=row["policy"],
        **{name: row.get(name, None if name == "other_world" else False) for name in _MARKS},
        env_id=board.env_id,
        env_kwargs={},
        seeds=int(whole["first_seed"]) + np.arange(len(returns), dtype=np.int64),
        returns=returns,
        metrics={**metrics, **worlds},
        headline=dict(whole["better"]),
    )
