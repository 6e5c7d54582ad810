"""Bands of replays, and from which load they are told."""

import numpy as np
import pytest

from llmgym import profiles
from llmgym.cli import main
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.profiles import cost as kernels
from llmgym.profiles.cost_changes import slower
from llmgym.serving.replay import WAYS, latency_figures, replay
from llmgym.serving.sensitivity import band, load
from llmgym.workloads import Rows

SECOND = profiles.constant(1.0)


def rows_of(gap_s, n=60):
    """One request of 4 and 8 tokens after the other: alone in the engine it holds 12 tokens in the end."""
    return Rows(gap_s * np.arange(n), np.full(n, 4), np.full(n, 8))


def test_the_load_is_the_rate_over_that_which_saturates_the_seats():
    """One seat, 8 steps of a second for a request: 1 / 8 requests a second."""
    engine = {"kv_capacity": 1_600, "seats": 1}
    assert load(rows_of(10.0), SECOND, **engine) == pytest.approx(0.8, rel=1e-6)
    assert load(rows_of(10.0), SECOND, **engine, ranks=2) == pytest.approx(0.4, rel=1e-6)
    assert load(rows_of(0.0), SECOND, **engine) == np.inf
    assert load(rows_of(1.0, n=1), SECOND, **engine) == 0.0
    with pytest.raises(InvalidArgument, match="seats=0"):
        load(rows_of(10.0), SECOND, kv_capacity=1_600, seats=0)


def test_a_band_holds_the_replay_and_is_narrow_far_from_saturation():
    rows = rows_of(20.0)
    settings = {"kv_capacity": 1_600, "scheduling": "sync"}
    found = band(rows, SECOND, 0.1, **settings)
    served = replay(rows, SECOND, **settings)
    middle = latency_figures(served.arrival_s, served.first_s, served.last_s, rows.output_tokens)
    assert set(found) == set(middle)
    assert found["tpot_p50_s"] == pytest.approx((0.9, 1.1), rel=1e-6)
    assert found["e2e_p50_s"] == pytest.approx((7.2, 8.8), rel=1e-6)
    crowded = band(rows_of(8.2), SECOND, 0.1, seats=1, **settings)
    assert crowded["e2e_p90_s"][0] == pytest.approx(7.2, rel=1e-6)
    assert crowded["e2e_p90_s"][1] > 3 * 8.8  # a step that is a tenth longer, and the line grows
    with pytest.raises(InvalidArgument, match="step_s=0"):
        band(rows, SECOND, 0.0)
    with pytest.raises(InvalidArgument, match=r"slower_s=inf"):
        replay(rows, SECOND, slower_s=np.inf, **settings)


def test_every_step_is_slower_and_none_is_below_its_device_time():
    cost = profiles.load("h100/llama-3.1-8b").step_cost()
    shape = (100, 1e-3, 20, 20_000, 21, 0)
    plain = kernels.step_time_s(cost, *shape)
    assert kernels.step_time_s(slower(cost, 3e-4), *shape) == pytest.approx(plain + 3e-4, rel=1e-5)
    none = kernels.step_time_s(slower(cost, -1.0), *shape)
    assert none == pytest.approx(plain - kernels.host_s(cost, 21), rel=1e-5)
    assert slower(SECOND.step_cost(), -2.0).head["c0_s"][0] == 0.0


def test_a_client_has_its_tokens_later():
    rows = rows_of(20.0, n=3)
    engine = {"kv_capacity": 1_600, "scheduling": "sync"}
    at_once = replay(rows, SECOND, **engine)
    for way, way_s in (("streaming", WAYS["streaming"]), (0.25, 0.25)):
        later = replay(rows, SECOND, way=way, **engine)
        np.testing.assert_allclose(later.first_s, at_once.first_s + way_s)
        np.testing.assert_allclose(later.last_s, at_once.last_s + way_s)
    loop = replay(rows, SECOND, way=0.25, clients=1, **engine)
    np.testing.assert_allclose(loop.arrival_s, [0.0, 8.25, 16.5])
    with pytest.raises(UnknownName, match="unknown way 'slow'"):
        replay(rows, SECOND, way="slow", **engine)
    with pytest.raises(InvalidArgument, match=r"way=-0\.1"):
        replay(rows, SECOND, way=-0.1, **engine)


def test_the_command_tells_a_band_near_saturation_only(capsys, tmp_path):
    path = tmp_path / "run.csv"
    text = "arrival_s,prompt_tokens,output_tokens\n"
    rng = np.random.default_rng(0)
    at = np.cumsum(rng.exponential(0.02, 200))
    path.write_text(text + "".join(f"{t:.4f},500,50\n" for t in at), encoding="utf-8")
    arguments = ["replay", str(path), "--seats", "16", "--way", "in-process"]
    assert main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "of the rate that saturates the engine in closed form" in said
        and "0.3 ms a step less and more" in said
    )
    assert main([*arguments, "--rate", "2"]) == 0
    assert "saturates" not in capsys.readouterr().out
    assert main([*arguments, "--clients", "4"]) == 0
    assert "saturates" not in capsys.readouterr().out
    path.write_text(text + "0,500,50\n" * 40, encoding="utf-8")
    assert main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The requests come all at once; small errors" in said and "inf" not in said
    assert main(["replay", str(path), "--way", "fast"]) != 0
    assert "unknown way 'fast'. Known: in-process, none, streaming" in capsys.readouterr().err
