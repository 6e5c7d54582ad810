"""Unmask: the denoiser against brute force, the return against the law of the text, a toy with a known optimum, wrong input."""

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmgym  # noqa: F401
from llmgym.envs.unmask.costs import LAYERS, PUBLISHED_S, call_times
from llmgym.envs.unmask.denoiser import Denoiser
from llmgym.envs.unmask.env import Unmask, UnmaskEnv, UnmaskVectorEnv
from llmgym.envs.unmask.kernels import checksum_of, fire
from llmgym.envs.unmask.process import Process, chain_of, log_probability, phrases_of, start_law
from llmgym.envs.unmask.scenarios import SCENARIOS
from llmgym.envs.unmask.schedule import fixed_counts
from llmgym.envs.unmask.state import CHOSEN, ENTROPY, FALL, FEATURES, LEFT, MASKED, NEAR, RIGHT
from llmgym.envs.unmask.typical import typical_log
from llmgym.errors import InvalidAction, InvalidArgument, UnknownName

ID = "llmgym/Unmask-v0"
TINY: dict[str, Any] = {
    "tokens": 8,
    "block": 4,
    "prompt": 4,
    "processes": 1,
    "phrases": 3,
    "vocabulary": 3,
    "noise": 0.1,
    "lambda_low": 1.0,
    "lambda_high": 1.0,
}
ONE, ALL = 1, 9


def brute_force(process: Process, known: np.ndarray) -> tuple[np.ndarray, float]:
    """Laws of all tokens, and ln p(known), by the probabilities of all texts."""
    laws, total = np.zeros((len(known), process.vocabulary)), 0.0
    for letters in itertools.product(range(process.vocabulary), repeat=len(known)):
        text = np.array(letters)
        if ((known < 0) | (known == text)).all():
            p = np.exp(log_probability(process, text))
            laws[np.arange(len(text)), text] += p
            total += p
    return laws / total, float(np.log(total))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 50),
    topics=st.integers(1, 2),
    known=st.lists(st.integers(-1, 2), min_size=1, max_size=6),
)
def test_the_denoiser_is_exact(seed: int, topics: int, known: list[int]) -> None:
    process = phrases_of(seed, topics, 4, 3, 0.1)
    laws, log_known = Denoiser(process)(np.array(known))
    expected, log_expected = brute_force(process, np.array(known))
    assert laws == pytest.approx(expected, abs=1e-12) and log_known == pytest.approx(log_expected, abs=1e-10)


def test_the_denoiser_of_the_next_block() -> None:
    process, rng = phrases_of(7), np.random.default_rng(0)
    first, second = rng.integers(0, 32, 9), rng.integers(0, 32, 7)
    found = Denoiser(process).after(first)(second)[1]
    expected = log_probability(process, np.concatenate([first, second])) - log_probability(process, first)
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_language() -> None:
    process = phrases_of(0)
    assert ((process.lengths >= 2) & (process.lengths <= 6)).all()
    assert process.onward.sum(axis=2) == pytest.approx(1.0) and process.start.sum() == pytest.approx(1.0)
    assert process.start.sum(axis=(1, 2)) == pytest.approx(0.5)
    chain = chain_of(np.array([[0.9, 0.1], [0.3, 0.7]]))
    assert chain.start[0, :, 0] == pytest.approx([0.75, 0.25])  # its stationary law
    assert start_law(chain.lengths, chain.onward) == pytest.approx(chain.start)
    # about 0.44 nats a token: what the language was made for
    env = UnmaskEnv(tokens=64, block=64, action="macro", processes=20)
    nats = []
    for seed in range(60):
        env.reset(seed=seed)
        ended = False
        while not ended:
            _, _, ended, _, info = env.step(ONE)
        nats.append(info["metrics"]["nll_nats_per_token"])
    assert np.mean(nats) == pytest.approx(0.44, abs=0.06)


def law_after(state: Any, simulation: Unmask) -> tuple[float, Process, np.ndarray]:
    """True ln p(text | prompt) of a finished lane, stream by stream, with its language and text."""
    scenario, episode = simulation.scenario, state.lane[0]
    process = simulation.processes[episode["process"]]
    text, n = state.token[0].astype(np.int64), int(episode["streams"])
    prompt = np.arange(len(text)) < scenario.prompt
    total = 0.0
    for stream in range(n):
        own = np.arange(len(text)) % n == stream
        total += log_probability(process, text[own]) - log_probability(process, text[own & prompt])
    return total, process, text


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    choices=st.integers(0, 2**40),
    streams=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(["generate", "score"]),
)
def test_the_return_is_the_cost_and_the_ratio_of_the_laws(
    seed: int, choices: int, streams: int, mode: str
) -> None:
    """Sum of what the calls lose = ln q(x) - ln p(x), with ln q from the laws that a denoiser of its own gives."""
    env = UnmaskEnv(scenario="small", tokens=24, block=12, processes=2, interleave=(streams,), mode=mode)
    _, info = env.reset(seed=seed)
    rng, ended, total, log_q = np.random.default_rng(choices), False, 0.0, 0.0
    state = env.lanes.state
    while not ended:
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        if action == env.simulation.scenario.block:
            chosen = state.chosen[0] == 1
            log_q += float(state.position["log_drawn"][0][chosen].sum())
        _, reward, ended, _, info = env.step(action)
        total += reward
    metrics, (log_p, _, text) = info["metrics"], law_after(state, env.simulation)
    sign = 1.0 if mode == "generate" else -1.0
    assert metrics["kl_nats"] == pytest.approx(sign * (log_q - log_p), abs=1e-8)
    assert metrics["nll_nats_per_token"] == pytest.approx(-log_p / 24, abs=1e-9)
    assert total == pytest.approx(-metrics["nfe"] - metrics["lambda_calls_per_nat"] * metrics["kl_nats"])
    assert metrics["objective"] == pytest.approx(-total)
    if mode == "score":
        assert np.array_equal(text, state.truth[0])


def test_one_position_a_call_is_exact_in_every_mode_and_order() -> None:
    for mode in ("generate", "score"):
        env = UnmaskEnv(scenario="columns", tokens=32, mode=mode, action="set")
        for seed in range(4):
            env.reset(seed=seed)
            rng, ended = np.random.default_rng(seed), False
            while not ended:
                action = np.zeros(16, np.int64)
                action[rng.choice(np.flatnonzero(env.lanes.state.masked[0]))] = 1
                _, _, ended, _, info = env.step(action)
            assert np.abs(env.lanes.state.gap[0, :32]).max() < 1e-9 and info["metrics"]["nfe"] == 32


def test_the_three_kinds_of_actions_are_one_world() -> None:
    """Choosing the positions one by one, as a set, or by a macro gives the same rewards."""
    rewards = []
    for action in ("add", "set", "macro"):
        env = UnmaskEnv(scenario="small", tokens=32, action=action)
        env.reset(seed=5)
        ended, total = False, []
        while not ended:
            masked = env.lanes.state.masked[0].copy()
            if action == "add":
                for i in np.flatnonzero(masked[::2]) * 2 if masked[::2].any() else np.flatnonzero(masked):
                    env.step(int(i))
                _, reward, ended, _, _ = env.step(16)
            elif action == "set":
                half = masked * (np.arange(16) % 2 == 0)
                _, reward, ended, _, _ = env.step((half if half.any() else masked).astype(np.int64))
            else:
                # the odd half by the macro `all`, the even one by hand
                half = masked * (np.arange(16) % 2 == 0)
                if half.any():
                    env.lanes.state.chosen[0] = half
                    reward, ended, _ = fire(env.lanes.state, env.simulation.params, 0)
                else:
                    _, reward, ended, _, _ = env.step(ALL)
            total.append(reward)
        rewards.append(total)
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-12)
    assert rewards[0] == pytest.approx(rewards[2], abs=1e-12)


def mean_return_of_both(env: Any) -> float:
    """The mean return of revealing a block of two at once, by the environment's own kernels: over all pairs of tokens."""
    simulation, state = env.simulation, env.lanes.state
    env.reset(seed=0)
    laws = Denoiser(simulation.processes[0], state.prior[0, 0])(np.full(2, -1))[0]
    total = 0.0
    for pair in itertools.product(range(3), repeat=2):
        env.reset(seed=0)
        for i, token in enumerate(pair):
            state.position["drawn"][0, i] = token
            state.position["log_drawn"][0, i] = np.log(laws[i, token])
        _, reward, ended, _, _ = env.step(np.array([1, 1]))
        assert ended
        total += laws[0, pair[0]] * laws[1, pair[1]] * reward
    return float(total)


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
def test_the_optimum_of_a_toy(share: float) -> None:
    """Two positions: both at once cost 1 + lambda KL(q||p), one after the other 2; so the better one changes at lambda = 1 / KL."""
    kwargs = TINY | {"tokens": 2, "block": 2, "action": "set"}
    probe = UnmaskEnv(**kwargs)
    probe.reset(seed=0)
    prior = probe.lanes.state.prior[0, 0]
    denoiser = Denoiser(probe.simulation.processes[0], prior)
    first, second = denoiser(np.full(2, -1))[0]
    q = np.outer(first, second)
    p = np.array([[np.exp(denoiser(np.array([v, w]))[1]) for w in range(3)] for v in range(3)])
    divergence = float((q * np.log(q / p)).sum())
    assert p.sum() == pytest.approx(1.0) and divergence > 0.05
    price = share / divergence
    env = UnmaskEnv(**kwargs | {"lambda_low": price, "lambda_high": price})
    both = mean_return_of_both(env)
    env.reset(seed=0)
    one_by_one = env.step(np.array([0, 1]))[1] + env.step(np.array([1, 0]))[1]
    assert one_by_one == pytest.approx(-2.0, abs=1e-9)
    assert both == pytest.approx(-1.0 - share, abs=1e-9)
    assert max(both, one_by_one) == pytest.approx(-min(2.0, 1.0 + price * divergence), abs=1e-9)


def test_redraw_keeps_what_is_known_and_follows_the_law() -> None:
    """The masked tokens of a true text are drawn from their law given those that are known."""
    env = UnmaskEnv(**TINY | {"tokens": 4, "mode": "score", "action": "set"})
    env.reset(seed=1)
    env.step(np.array([0, 1, 0, 0]))
    state = env.lanes.state
    known = state.token[0, 4:].astype(np.int64)
    expected = Denoiser(env.simulation.processes[0], state.prior[0, 0])(known)[0]
    counts = np.zeros((4, 3))
    for key in range(3000):
        env.simulation.redraw(state, 0, key)
        counts[np.arange(4), state.truth[0, 4:]] += 1
    assert state.truth[0, 5] == known[1]
    assert counts / 3000 == pytest.approx(expected, abs=0.035)
    assert state.lane[0]["checksum"] == checksum_of(state, env.simulation.params, 0)


def test_tokens_are_drawn_from_their_marginals() -> None:
    env = UnmaskEnv(**TINY | {"tokens": 4})
    env.reset(seed=1)
    state = env.lanes.state
    expected = Denoiser(env.simulation.processes[0], state.prior[0, 0])(np.full(4, -1))[0]
    counts = np.zeros((4, 3))
    for key in range(3000):
        env.simulation.redraw(state, 0, key)
        counts[np.arange(4), state.position["drawn"][0]] += 1
    assert counts / 3000 == pytest.approx(expected, abs=0.035)
    drawn, right = state.position["drawn"][0], state.position["right"][0]
    assert np.array_equal(right, drawn == expected.argmax(axis=1))


def test_what_is_observed() -> None:
    env = UnmaskEnv(scenario="small", show_interleave=True)
    obs, _ = env.reset(seed=0)
    for i in (3, 8):
        env.step(i)
    obs, *_ = env.step(16)
    before = env.lanes.state.position["entropy"][0].copy()
    obs, *_ = env.step(5)
    rows = obs[env.layout["position"]].reshape(16, len(FEATURES))
    assert rows[:, MASKED].sum() == 14 and rows[3, MASKED] == rows[8, MASKED] == 0
    assert rows[:, CHOSEN].tolist() == [float(i == 5) for i in range(16)]
    assert rows[6, LEFT] == pytest.approx(3 / 16) and rows[6, RIGHT] == pytest.approx(2 / 16)
    assert rows[10, NEAR] == pytest.approx(5 / 16) and rows[5, NEAR] == 1.0
    assert rows[0, LEFT] == pytest.approx(1 / 16) and rows[15, RIGHT] == 1.0
    assert rows[:, ENTROPY] == pytest.approx(before / np.log(32), abs=1e-6)
    assert np.abs(rows[:, FALL]).max() > 0.0
    assert obs[env.layout["calls"]] == pytest.approx(1 / 64) and obs[env.layout["interleave"]] == 0.25


def test_an_error_of_the_denoiser_makes_worse_texts() -> None:
    """Farther from what is known it is less sure, and what one position a call loses is no longer 0."""
    kl, confidence = {}, {}
    for error in (0.0, 0.5):
        envs = UnmaskVectorEnv(
            60, scenario="small", action="macro", denoiser_error=error, autoreset_mode="DISABLED"
        )
        envs.reset(seed=0)
        confidence[error] = envs.lanes.state.position["confidence"].mean(axis=0)
        for _ in range(64):
            infos = envs.step(np.full(60, ONE))[4]
        kl[error] = infos["metrics"]["kl_nats"].mean()
    assert kl[0.0] == pytest.approx(0.0, abs=1e-9) and kl[0.5] > 0.1
    assert confidence[0.5][0] == pytest.approx(confidence[0.0][0]) and confidence[0.5][8] < confidence[0.0][8]


def test_how_likely_true_texts_are() -> None:
    """True texts are typical 95 times of 100."""
    env = UnmaskVectorEnv(
        300, scenario="columns", tokens=32, mode="score", action="macro", autoreset_mode="DISABLED"
    )
    env.reset(seed=0)
    for _ in range(2):
        infos = env.step(np.full(300, ALL))[4]
    assert infos["metrics"]["typical"].mean() == pytest.approx(0.95, abs=0.03)
    assert typical_log(phrases_of(0), 8, 32, 1) < typical_log(phrases_of(0), 8, 16, 1) < 0.0


def test_what_a_call_takes() -> None:
    assert (call_times("published", 64, 16, 512, False) == PUBLISHED_S).all()
    whole = call_times("h100", 256, 32, 1024, False)
    kept = call_times("h100", 256, 32, 1024, True)
    assert len(whole) == 8 and (whole == whole[0]).all() and (kept < whole[0] / 2).all()
    assert (np.diff(kept) > 0).all() and LAYERS * 150e-6 < kept[0] < LAYERS * 400e-6
    assert (call_times("h200", 256, 32, 1024, True) < kept).all()
    env = UnmaskEnv(scenario="mixed", action="macro")
    env.reset(seed=0)
    ended = False
    while not ended:
        _, _, ended, _, info = env.step(ALL)
    metrics = info["metrics"]
    assert metrics["time_s"] == pytest.approx(env.simulation.call_s.sum())
    assert metrics["cost_calls"] == pytest.approx(4.0) and metrics["nfe"] == 4
    with pytest.raises(InvalidArgument, match="measured"):
        call_times("h100", 256, 32, 2**20, True)


def test_scenarios_and_memory() -> None:
    """All of them play, and a lane of any has at most 32 KB."""
    for name in SCENARIOS:
        env = UnmaskEnv(scenario=name, processes=1)
        assert sum(array.nbytes for array in env.simulation.allocate(1)) <= 32_768, name
    largest = Unmask(tokens=256, block=64, prompt=64, interleave=(1, 2, 4), processes=1)
    assert sum(array.nbytes for array in largest.allocate(1)) <= 32_768


def test_pictures() -> None:
    for mode in ("ansi", "rgb_array"):
        env = gymnasium.make(ID, scenario="paper", processes=1, render_mode=mode)
        env.reset(seed=0)
        first = env.render()
        for action in (0, 5, 9, 32, 2):
            env.step(action)
        later = env.render()
        if mode == "ansi":
            assert "block   0  0.+" in later and "1 calls" in later and later != first
        else:
            assert later.shape == (560, 860, 3) and later.dtype == np.uint8 and (later != first).any()


def test_masked_actions_do_nothing_but_cost() -> None:
    env = UnmaskEnv(scenario="small", invalid_cost=0.25)
    env.reset(seed=0)
    assert env.step(16)[1] == -0.25  # nothing is chosen
    env.step(4)
    assert env.step(4)[1] == -0.25 and env.lanes.state.chosen[0].sum() == 1
    metrics = env.metrics()
    assert metrics["invalid_actions"] == 2 and metrics["penalty"] == 0.5 and metrics["nfe"] == 0
    env = UnmaskEnv(scenario="small", invalid_action="raise")
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="masked"):
        env.step(16)
    stuck = UnmaskEnv(tokens=4, block=4)
    stuck.reset(seed=0)
    for step in range(64 * 4):
        *_, terminated, truncated, _ = stuck.step(4)
        assert not terminated and truncated == (step == 255)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"tokens": 60}, "multiple"),
        ({"lambda_low": 2.0, "lambda_high": 1.0}, "lambda_low"),
        ({"interleave": (3,)}, "interleave"),
        ({"interleave": ()}, "interleave"),
        ({"prompt": 2, "interleave": (4,)}, "prompt"),
        ({"noise": 0.0}, "noise"),
        ({"block": 128}, "block"),
        ({"tokens": 2**20}, "tokens"),
        ({"text": 3}, "text"),
        ({"context": 10**6}, "context"),
        ({"denoiser_error": 1.5}, "denoiser_error"),
    ],
)
def test_wrong_settings_are_named(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        UnmaskEnv(**kwargs)


@pytest.mark.parametrize("kwargs", [{"mode": "x"}, {"clock": "x"}, {"text": "x"}, {"action": "x"}])
def test_unknown_words_are_named(kwargs: dict[str, Any]) -> None:
    with pytest.raises(UnknownName, match="x"):
        UnmaskEnv(**kwargs)
    with pytest.raises(InvalidArgument):
        fixed_counts(4, 9)
    with pytest.raises(InvalidArgument, match="onward"):
        chain_of(np.eye(3))
