"""Room with copies on a device: the gains of the CPU, to the bit, on a device that is the memory of this machine."""

import json
from typing import Any

import numpy as np
import pytest

from llmgym import cli
from llmgym.core.lanes import HOLD
from llmgym.errors import InvalidArgument
from llmgym.evaluation import RoomResult, lookahead, measure_room, room
from llmgym.evaluation.lookahead import LookAhead
from llmgym.evaluation.rollout import load_decision
from tests.evaluation.test_room import Serve, looked
from tests.toy import ToyVectorEnv

torch = pytest.importorskip("torch")
from llmgym.core.device_env import DeviceVectorEnv  # noqa: E402
from tests.core.host_card import HostCard, make_on_host  # noqa: E402


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceVectorEnv, "_card", staticmethod(lambda device, exact: HostCard(in_tiles=True)))


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("llmgym/PPDRouting-v0", {"scenario": "small", "conversations": 24, "against": ["pd"]}),
        ("llmgym/AFDRefill-v0", {"scenario": "small", "cycles": 10, "against": ["fcfs", "min-max"]}),
        (
            "llmgym/PipeSDTune-v0",
            {
                "scenario": "small",
                "tokens": 120,
                "against": ["fixed"],
                "points": 3,
                "stride": 2,
                "horizon": 3,
            },
        ),
    ],
)
def test_the_room_is_that_of_the_cpu(env_id: str, kwargs: Any, card: None, monkeypatch: Any) -> None:
    """Also with few copies at once, and with fewer worlds at once than there are."""
    asked = {"worlds": 5, "tuning": 2, "progress": False, **kwargs}
    here = room(env_id, **asked)
    assert here.gain != 0
    for copies in (None, 13):
        if copies is not None:
            monkeypatch.setattr(lookahead, "MOST_COPIES_ON_GPU", copies)
            monkeypatch.setattr(measure_room, "MOST_COPIES_ON_GPU", copies)
        there = room(env_id, device="cuda", **asked)
        for name, returns in here.rules.items():
            assert there.rules[name].tolist() == returns.tolist()
        assert there.knowing["clairvoyant"].tolist() == here.knowing["clairvoyant"].tolist()
        assert there.metrics == here.metrics and there.tail == here.tail


@pytest.mark.parametrize(("action", "points"), [("number", None), ("pair", None), ("box", 3)])
def test_every_space_and_a_rule_that_remembers(action: str, points: int | None) -> None:
    """A rule that counts steps, which change nothing; pairs of actions, and real numbers on a grid."""
    kwargs: Any = {"horizon": 7, "action": action}

    def played(device: str) -> list[float]:
        env = ToyVectorEnv(6, **kwargs)

        def make(count: int) -> Any:
            if device == "cpu":
                return ToyVectorEnv(count, **kwargs)
            return make_on_host(ToyVectorEnv, count, in_tiles=True, **kwargs)

        policy = LookAhead(
            env, make, lambda e: Remembers(e, 0, action != "number"), points=points, device=device
        )
        env.reset(seed=list(range(6)))
        policy.reset(np.ones(6, np.bool_))
        total, buffers = np.zeros(6), env.lanes.buffers
        while not buffers.ended.all():
            load_decision(env, policy, "clairvoyant", 0)
            env.lanes.step(HOLD)
            total += buffers.reward
        return total.tolist()  # type: ignore[no-any-return]

    class Remembers(Serve):  # type: ignore[misc]
        def act(self, obs: Any, mask: Any) -> Any:
            # serves one at every third step of its own
            self.steps += 1
            wanted = np.where(self.steps % 3 == 0, 1, 0)
            if action == "number":
                return np.where(mask[np.arange(len(obs)), wanted] == 1, wanted, 0)
            return np.stack([wanted, 0 * wanted], axis=1) if action == "pair" else wanted[:, None] * 1.0

    assert played("cuda") == played("cpu")
    assert np.mean(played("cpu")) > np.mean(looked(range(6), number=0, horizon=7)[1])


def test_the_memory_of_the_card_bounds_the_copies() -> None:
    made = []

    def make(count: int) -> Any:
        made.append(count)
        return make_on_host(ToyVectorEnv, count, free=2000)

    LookAhead(ToyVectorEnv(50), make, Serve, device="cuda")
    each = make_on_host(ToyVectorEnv, 1).lanes.bytes_of_a_lane
    assert made == [1, int(0.75 * 2000) // each] and 1 < made[1] < 150


def test_what_goes_wrong_is_told(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    small: Any = {"scenario": "small", "worlds": 2, "tuning": 2, "progress": False}
    with pytest.raises(InvalidArgument, match=r"tail='oracle': it is privileged, .* device='cuda'"):
        room("llmgym/MemPlace-v0", tail="oracle", device="cuda", **small)
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidArgument, match="device='cuda': torch finds no NVIDIA GPU here"):
        room("llmgym/MemPlace-v0", device="cuda", **small)
    with pytest.raises(InvalidArgument, match="device='tpu': allowed 'cpu', 'cuda'"):
        room("llmgym/MemPlace-v0", device="tpu", **small)
    assert cli.main(["room", "llmgym/MemPlace-v0", "--device", "cuda"]) == cli.USAGE


def test_a_rule_that_reads_states_is_told(card: None) -> None:
    class Peeks(Serve):  # type: ignore[misc]
        def act(self, obs: Any, mask: Any) -> Any:
            assert len(self._env.lanes.state) == 1
            return super().act(obs, mask)

    env = ToyVectorEnv(2, horizon=5)
    policy = LookAhead(env, lambda n: make_on_host(ToyVectorEnv, n, horizon=5), Peeks, device="cuda")
    env.reset(seed=1)
    with pytest.raises(InvalidArgument, match=r"a policy that reads `lanes.state` needs device='cpu'"):
        for decision in range(5):  # as long as nobody waits there is no choice
            load_decision(env, policy, "clairvoyant", decision)
            env.lanes.step(HOLD)


def test_the_command_says_where(card: None, tmp_path: Any, capsys: Any) -> None:
    out = tmp_path / "room.json"
    words = ["room", "llmgym/MemPlace-v0", "--scenario", "small", "--against", "static", "gpu-only"]
    words += ["--worlds", "2", "--tuning", "2", "--env-args", "requests=6", "threads=2", "--no-progress"]
    assert cli.main([*words, "--device", "cuda:1", "--out", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "in a copy of the world on cuda:1, " in shown
    assert json.loads(out.read_text())["device"] == RoomResult.read(out).device == "cuda:1"
    assert cli.main([*words, "--json"]) == 0
    here = json.loads(capsys.readouterr().out)
    assert here["device"] == "cpu" and here["knowing"] == json.loads(out.read_text())["knowing"]
