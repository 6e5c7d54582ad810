import errno
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from llmgym import policies
from llmgym.core.policy import Policy
from llmgym.errors import CheckpointError, InvalidArgument, OutputError, UnknownName
from llmgym.policies import Plan, PPOConfig
from tests.policies.toys import GUESS, TOY, GuessVectorEnv, mean_return
from tests.toy import ToyEnv, ToyVectorEnv

torch = pytest.importorskip("torch")

from llmgym.policies import checkpoint  # noqa: E402
from llmgym.policies.network import ActorCritic, RunningMoments  # noqa: E402

CONFIG = PPOConfig(rollout_steps=16, minibatch=1024, threads=1)
UPDATE = 16 * 64


def plan(out: Path, env_id: str = TOY, **changes: Any) -> Plan:
    defaults = {
        "timesteps": 4 * UPDATE,
        "lanes": 64,
        "save_every_s": 1e9,
        "progress": False,
        "config": CONFIG,
    }
    return Plan(env_id, out, **{**defaults, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "toy-run"
    policies.train(plan(out, timesteps=20 * UPDATE))
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((run / "checkpoint.pt").read_bytes())
    return path


def rewrite(path: Path, **changes: Any) -> None:
    payload = torch.load(path, weights_only=True)
    for key, value in changes.items():
        if key in payload:
            payload[key] = value
        else:
            payload["meta"][key] = value
    torch.save(payload, path)


def test_numpy_policy_acts_as_the_network_does(run: Path) -> None:
    stored = checkpoint.load(run / "checkpoint.pt")
    env = ToyVectorEnv(512)
    net = ActorCritic(2, env.single_action_space, CONFIG.hidden, "tanh", torch.Generator())
    net.load_state_dict(stored["model"])
    moments = RunningMoments(2)
    moments.restore(stored["normaliser"]["observations"])
    rng = np.random.default_rng(0)
    obs = rng.random((512, 2), dtype=np.float32)
    mask = np.concatenate([np.ones((512, 1), np.int8), rng.integers(0, 2, (512, 2), np.int8)], axis=1)
    rows = torch.from_numpy(((obs - moments.mean) / np.sqrt(moments.var + 1e-4)).astype(np.float32))
    with torch.no_grad():
        expected = net.log_probabilities(rows, torch.from_numpy(mask).bool())[:, 0].argmax(-1).numpy()
    policy = policies.load(run, env)
    got = policy.act(obs, mask)
    assert (got == expected).all() and len(set(got.tolist())) > 1
    assert mask[np.arange(512), got].all()
    assert (policies.load(run / "checkpoint.pt", env).act(obs, mask) == got).all()
    one = np.array([policy.act(obs[i : i + 1], mask[i : i + 1])[0] for i in range(64)])
    assert (one == got[:64]).all()
    assert isinstance(policy, Policy) and policy.name == "toy-run" and not policy.privileged


def test_drawn_actions_follow_their_seed(run: Path) -> None:
    env = ToyVectorEnv(256)
    obs, infos = env.reset(seed=0)
    for _ in range(3):
        obs, *_, infos = env.step(np.zeros(256, int))
    a, b, c = (policies.load(run, env, sample_seed=seed).act(obs, infos["action_mask"]) for seed in (1, 1, 2))
    assert (a == b).all() and (a != c).any()
    assert infos["action_mask"][np.arange(256), a].all()


def test_loads_for_every_kind_of_environment(run: Path) -> None:
    for env in (ToyEnv(), gymnasium.make(TOY), gymnasium.make_vec(TOY, num_envs=3), ToyVectorEnv(2)):
        assert policies.load(run, env).act(np.zeros((1, 2), np.float32), None).shape == (1,)


def test_meta_and_interface(tmp_path: Path) -> None:
    kwargs = {"kind": "box", "horizon": 5}
    result = policies.train(plan(tmp_path / "run", GUESS, env_kwargs=kwargs))
    meta = policies.meta(result.checkpoint)
    assert meta["env_kwargs"] == kwargs and meta["env_id"] == GUESS and meta["steps"] == 4 * UPDATE
    # the kind of action is the policy's, the horizon belongs to the world
    assert policies.env_kwargs(result.checkpoint) == {"kind": "box"}
    assert policies.env_kwargs(tmp_path / "run") == {"kind": "box"}


def test_a_scenario_never_belongs_to_the_policy() -> None:
    """Also where it decides how many actions there are: everybody is compared on the scenario that was trained on."""
    from llmgym.policies.run import interface_kwargs, make_lanes

    kwargs = {"scenario": "paper-drift", "profile": "paper/kv-queue-linear"}
    env = make_lanes("llmgym/KVProvision-v0", 1, kwargs)
    default = make_lanes("llmgym/KVProvision-v0", 1, {})
    assert env.single_action_space != default.single_action_space
    assert interface_kwargs(env, "llmgym/KVProvision-v0", kwargs) == {}


def test_shipped_names() -> None:
    assert all(name.startswith("KVQueue-v0/") for name in policies.names("llmgym/KVQueue-v0"))
    assert policies.names("toy/Toy-v0") == []


@pytest.mark.parametrize("name", policies.names())
def test_a_shipped_policy_plays_where_it_was_trained(name: str) -> None:
    meta = policies.meta(name)
    env = gymnasium.make_vec(meta["env_id"], num_envs=2, **meta["env_kwargs"])
    policy = policies.load(name, env)
    obs, infos = env.reset(seed=0)
    for _ in range(5):
        obs, _, _, _, infos = env.step(policy.act(obs, infos["action_mask"]))
    assert np.isfinite(obs).all() and (policies.TRAINED / f"{name}.pt").stat().st_size < 1_000_000
    with pytest.raises(UnknownName, match="learned policy 'nobody'"):
        policies.load("nobody", ToyEnv())


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """A disk on which no file grows beyond a size: what is written beyond fails, as on a full one."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_good_checkpoint_and_nothing_else(
    copy: Path, small_files: Callable[[int], None]
) -> None:
    """It left a `checkpoint.tmp` of no bytes and ended with 30 lines of a traceback."""
    payload = checkpoint.load(copy)
    good = copy.read_bytes()
    for limit in (0, 100, 5000, len(good) - 1):
        small_files(limit)
        with pytest.raises(
            OutputError, match=r"checkpoint\.pt cannot be written: File too large; the one before it is kept$"
        ):
            checkpoint.save(copy, payload)
        assert [path.name for path in copy.parent.iterdir()] == [
            "checkpoint.pt"
        ] and copy.read_bytes() == good
        new = copy.with_name("new.pt")
        with pytest.raises(OutputError, match=r"new\.pt cannot be written: File too large$"):
            checkpoint.save(new, payload)
        assert not new.exists() and not new.with_suffix(".tmp").exists()
    small_files(10 * len(good))
    checkpoint.save(copy, payload)
    assert sorted(path.name for path in copy.parent.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


@pytest.mark.parametrize("step", ["fsync", "replace", "link"])
def test_a_disk_that_fails_at_any_step_of_a_save(
    copy: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    payload, good = checkpoint.load(copy), copy.read_bytes()

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fail)
    monkeypatch.setattr("shutil.copy2", fail)
    with pytest.raises(
        OutputError, match="cannot be written: No space left on device; the one before it is kept"
    ):
        checkpoint.save(copy, payload)
    assert [path.name for path in copy.parent.iterdir()] == ["checkpoint.pt"] and copy.read_bytes() == good


def test_what_no_checkpoint_can_hold_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        checkpoint.save(tmp_path / "checkpoint.pt", {"meta": lambda: None})
    assert not list(tmp_path.iterdir())


def test_shipped_policies_are_those_of_this_packages_environments() -> None:
    assert (
        policies.names("KVQueue-v0")
        == policies.names("llmgym:llmgym/KVQueue-v0")
        == policies.names("llmgym/KVQueue-v0")
    )
    assert policies.names("me/KVQueue-v0") == policies.names("mine:me/KVQueue-v0") == []


def test_environment_and_scenario_stand_for_the_best_seed_in_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmgym.policies import shipped

    monkeypatch.setattr(shipped, "TRAINED", tmp_path)
    (tmp_path / "X-v0").mkdir()
    for stem in ("ppo-small", "ppo-small-s1", "ppo-small-s2", "ppo-small-far", "ppo-small-s2x", "ppo-real"):
        (tmp_path / "X-v0" / f"{stem}.pt").write_bytes(b"")
    best = {"ppo-small": None, "ppo-small-s1": -2.0, "ppo-small-s2": -3.0}
    monkeypatch.setattr(checkpoint, "load", lambda path: {"meta": {"best_return": best[path.stem]}})
    assert shipped.path_of("X-v0/small") == (tmp_path / "X-v0" / "ppo-small-s1.pt", "X-v0/small")
    assert shipped.path_of("X-v0/real")[0].stem == "ppo-real"
    best["ppo-small-s1"] = best["ppo-small-s2"] = None  # type: ignore[assignment]
    assert shipped.path_of("X-v0/small")[0].stem == "ppo-small"
    assert shipped.path_of("X-v0/small-s1")[0].stem == "ppo-small-s1"
    for nothing in (
        "X-v0/sma",
        "X-v0/",
        "X-v0/small-s3",
        "Y-v0/small",
        "/X-v0/small",
        "*/small",
        "../x/y",
    ):
        with pytest.raises(UnknownName):
            shipped.path_of(nothing)


def test_missing_truncated_and_garbage(copy: Path) -> None:
    env = ToyEnv()
    with pytest.raises(CheckpointError, match=r"^no such file: .*none\.pt$"):
        policies.load(copy.with_name("none.pt"), env)
    whole = copy.read_bytes()
    for part in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        copy.write_bytes(whole[:part])
        with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
            policies.load(copy, env)
    copy.write_bytes(b"garbage" * 1000)
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        policies.load(copy, env)
    torch.save({"weights": torch.zeros(3)}, copy)
    with pytest.raises(CheckpointError, match="not a checkpoint of this package"):
        policies.load(copy, env)
    checkpoint.previous(copy).write_bytes(whole)
    copy.write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match=r"kept in .*checkpoint\.previous\.pt"):
        policies.load(copy, env)


def test_a_flipped_bit_is_noticed(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    place = data.find(torch.load(copy, weights_only=True)["model"]["actor.2.weight"].numpy().tobytes()[:64])
    data[place + 16] ^= 1
    copy.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="checksum"):
        policies.load(copy, ToyEnv())


def test_no_code_is_run_from_a_file(copy: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {tmp_path}/pwned",))

    torch.save({"format": checkpoint.FORMAT, "version": 1, "meta": Evil()}, copy)
    with pytest.raises(CheckpointError):
        policies.load(copy, ToyEnv())
    assert not (tmp_path / "pwned").exists()


def test_other_versions_and_environments(copy: Path, run: Path) -> None:
    rewrite(copy, version=checkpoint.VERSION + 1)
    with pytest.raises(CheckpointError, match=r"format version 2; this llmgym reads up to 1.*upgrade"):
        policies.load(copy, ToyEnv())
    copy.write_bytes((run / "checkpoint.pt").read_bytes())
    rewrite(copy, layout=[["queue.length", 2], ["age", 1]])
    with pytest.raises(CheckpointError) as error:
        policies.load(copy, ToyEnv())
    for part in (
        "'age' (1 entries) no longer exists",
        "'time' (1 entries) is new",
        "had 2 entries, now 1",
        "train anew",
    ):
        assert part in str(error.value)
    rewrite(copy, layout=[["time", 1], ["queue.length", 1]])
    with pytest.raises(CheckpointError, match=r"in the order time, queue.length, now queue.length, time"):
        policies.load(copy, ToyEnv())
    rewrite(copy, layout=ToyEnv().layout.signature(), action_space={"type": "Discrete", "n": 5})
    with pytest.raises(CheckpointError, match=r"actions were Discrete\(5\), now Discrete\(3\)"):
        policies.load(copy, ToyEnv())
    with pytest.raises(CheckpointError, match=f"trained on {TOY}, this is {GUESS}"):
        policies.load(run, gymnasium.make(GUESS))


def test_missing_parts(copy: Path) -> None:
    payload = torch.load(copy, weights_only=True)
    del payload["optimizer"], payload["meta"]["layout"]
    torch.save(payload, copy)
    with pytest.raises(CheckpointError, match=r"lacks optimizer, meta\.layout"):
        policies.load(copy, ToyEnv())


def test_a_failed_save_leaves_the_old_one(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash at any point of saving: the file that is there can be read, and is the old or the new one."""
    old = checkpoint.load(copy)
    new = {key: old[key] for key in checkpoint.PARTS} | {"meta": {**old["meta"], "steps": 999}}
    real = os.replace
    for fail_at in (1, 2):
        calls = 0

        def replace(*paths: Any, fail_at: int = fail_at) -> None:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise OSError("killed here")
            real(*paths)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="killed"):
            checkpoint.save(copy, new)
        assert checkpoint.load(copy)["meta"]["steps"] == old["meta"]["steps"]
    monkeypatch.setattr(os, "replace", real)
    checkpoint.save(copy, new)
    assert checkpoint.load(copy)["meta"]["steps"] == 999
    assert checkpoint.load(checkpoint.previous(copy))["meta"]["steps"] == old["meta"]["steps"]
    assert not list(copy.parent.glob("*.tmp"))


def test_resume_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    policies.train(plan(out, timesteps=6 * UPDATE))
    before = checkpoint.load(out / "checkpoint.pt")
    with pytest.raises(InvalidArgument, match="already holds a run"):
        policies.train(plan(out))
    # finished: nothing to do, nothing lost
    assert policies.train(plan(out, timesteps=6 * UPDATE, resume=True)).steps == 6 * UPDATE
    result = policies.train(plan(out, timesteps=10 * UPDATE, resume=True))
    after = checkpoint.load(out / "checkpoint.pt")
    assert result.steps == after["meta"]["steps"] == 10 * UPDATE
    assert result.curve["steps"].tolist() == [UPDATE * (i + 1) for i in range(10)]
    assert len((out / "learning_curve.csv").read_text().splitlines()) == 11
    assert result.wall_s > before["meta"]["wall_s"]

    def adam_steps(stored: Any) -> float:
        return float(stored["optimizer"]["state"][0]["step"])

    # 1,024 transitions an update, minibatches of 1,024: at most 4 gradient steps each, and none forgotten
    assert adam_steps(before) < adam_steps(after) <= adam_steps(before) + 16
    count = after["normaliser"]["observations"]["count"]
    assert count == 10 * UPDATE == before["normaliser"]["observations"]["count"] + 4 * UPDATE


def test_what_cannot_be_resumed(tmp_path: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        policies.train(plan(tmp_path / "none", resume=True))
    with pytest.raises(CheckpointError, match="does not fit"):
        policies.train(plan(run, GUESS, resume=True))
    with pytest.raises(CheckpointError, match="hidden"):
        policies.train(plan(run, resume=True, config=PPOConfig(hidden=(8,))))
    pytest.importorskip("sb3_contrib")
    with pytest.raises(CheckpointError, match="algo='ppo', not 'sb3-ppo'"):
        policies.train(plan(run, resume=True, algo="sb3-ppo"))


def test_resume_from_the_save_before_a_damaged_one(tmp_path: Path) -> None:
    out = tmp_path / "run"
    policies.train(plan(out, save_every_s=0))
    path = out / "checkpoint.pt"
    assert checkpoint.load(checkpoint.previous(path))["meta"]["steps"] == 3 * UPDATE
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="Going on from the save before it"):
        result = policies.train(plan(out, resume=True, timesteps=6 * UPDATE))
    assert result.steps == 6 * UPDATE and checkpoint.load(path)["meta"]["steps"] == 6 * UPDATE


def test_sigkill_loses_at_most_one_interval(tmp_path: Path) -> None:
    out = tmp_path / "run"
    script = f"""
        from pathlib import Path
        from llmgym import policies
        import tests.policies.toys
        from llmgym.policies import Plan, PPOConfig
        config = PPOConfig(rollout_steps=16, minibatch=1024, threads=1)
        out = Path({str(out)!r})
        plan = Plan({TOY!r}, out, timesteps=10**9, lanes=64, save_every_s=0, progress=False, config=config)
        policies.train(plan)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        rows = out / "learning_curve.csv"
        patience = time.monotonic() + 60
        while not (rows.exists() and rows.read_text().count("\n") > 12):
            assert process.poll() is None, "the training ended by itself"
            assert time.monotonic() < patience, "the training never got going"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = int(rows.read_text().rstrip("\n").splitlines()[-1].split(",")[0])
    kept = checkpoint.load(out / "checkpoint.pt")["meta"]["steps"]
    # it saves after every update: what was reported and not saved is one update
    assert kept > 0 and done - UPDATE <= kept <= done + UPDATE
    result = policies.train(plan(out, timesteps=kept + 3 * UPDATE, resume=True))
    assert result.steps == kept + 3 * UPDATE
    assert (np.diff(result.curve["steps"]) == UPDATE).all() and result.curve["steps"][0] == UPDATE
    idle = mean_return(TOY, lambda obs, mask: np.zeros(len(obs), int))
    assert mean_return(TOY, policies.load(out, ToyEnv()).act) > idle


def test_a_policy_of_another_kind_of_action_is_refused(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"now MultiDiscrete\(\[2, 3\]\)"):
        policies.load(run, GuessVectorEnv())
