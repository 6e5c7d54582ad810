"""Named workloads against the statistics of the traces they stand for.

The constants were computed from the public files: Azure LLM inference trace 2023
(github.com/Azure/AzurePublicDataset), Mooncake FAST'25 traces (github.com/kvcache-ai/Mooncake), ShareGPT
lengths of github.com/AKafakA/vidur_opt_scheduler and of github.com/microsoft/sarathi-serve.
"""

import json
from importlib.resources import files

import numpy as np
import pytest
from scipy.stats import spearmanr

from llmgym.errors import UnknownName
from llmgym.workloads import load, names

# requests/s, index of dispersion of requests a minute, minutes; (mean, p50, p90, p99) of prompt and output
TRACES = {
    "azure-code-2023": (2.5664, 163.96, 57, (2047.8, 1469, 5187.6, 7436), (27.9, 13, 55, 251.46)),
    "azure-conv-2023": (5.5301, 16.13, 58, (1154.7, 1020, 2734.5, 4142), (211.1, 129, 424, 601)),
    "mooncake-conversation": (3.4012, 2.89, 58, (12035.1, 6909, 27367, 85400.4), (342.6, 350, 597, 1118.5)),
    "mooncake-synthetic": (3.906, 1.19, 17, (15325.5, 11587, 38611.2, 66456.2), (149.1, 69, 389, 768.1)),
    "sharegpt": (1.0, 1.0, 60, (250.7, 35, 772, 2862), (323.1, 282, 680, 1000)),
    "sharegpt-8k": (1.0, 1.0, 60, (2340.0, 1730, 5696, 7433.7), (438.7, 415, 834, 998)),
}
LARGEST = {
    "azure-code-2023": (7437, 1899),
    "azure-conv-2023": (14050, 1000),
    "mooncake-conversation": (126195, 2000),
    "mooncake-synthetic": (191378, 893),
    "sharegpt": (3972, 2383),
    "sharegpt-8k": (8141, 1024),
}
RANK_CORRELATION = {"azure-code-2023": -0.021, "azure-conv-2023": 0.073, "mooncake-conversation": 0.072,
                    "mooncake-synthetic": -0.517, "sharegpt": 0.139, "sharegpt-8k": 0.051}  # fmt: skip
PAPER = {
    "uniform-1:1": (10, 1600, 10, 1600),
    "uniform-2:1": (10, 2133, 10, 1066),
    "uniform-1:2": (10, 1066, 10, 2133),
    "uniform-8:1": (10, 2844, 10, 356),
    "uniform-tiny": (5, 50, 5, 50),
}


def per_minute(workload, rng, minutes):
    arrival_s = workload.sample(rng, horizon_s=60.0 * minutes).arrival_s
    return np.bincount((arrival_s // 60.0).astype(int), minlength=minutes)[:minutes]


@pytest.mark.parametrize("name", TRACES)
def test_lengths_match_the_trace(name):
    _, _, _, prompt, output = TRACES[name]
    w = load(name)
    r = w.sample(np.random.default_rng(5), n=400_000)
    for drawn, wanted in ((r.prompt_tokens, prompt), (r.output_tokens, output)):
        found = (drawn.mean(), *np.quantile(drawn, [0.5, 0.9, 0.99]))
        assert found == pytest.approx(wanted, rel=0.03)
    assert (w.max_prompt_tokens, w.max_output_tokens) == LARGEST[name]
    assert spearmanr(r.prompt_tokens, r.output_tokens).statistic == pytest.approx(
        RANK_CORRELATION[name], abs=0.03
    )
    assert w.expectation(lambda s, o: s) == pytest.approx(prompt[0], rel=0.01)
    assert w.expectation(lambda s, o: o) == pytest.approx(output[0], rel=0.01)


@pytest.mark.parametrize("name", TRACES)
def test_arrivals_match_the_trace(name):
    rate_rps, index, minutes, _, _ = TRACES[name]
    w = load(name)
    assert w.mean_rate_rps == pytest.approx(rate_rps, rel=1e-3)
    # silences leave an error of 1 % in the rate of 200 hours of the code trace, 0.5 % in that of 1000
    rng = np.random.default_rng(6)
    runs = [per_minute(w, rng, 50 * 60) for _ in range(20 if name == "azure-code-2023" else 8)]
    counts = np.concatenate(runs)
    assert counts.mean() / 60.0 == pytest.approx(rate_rps, rel=0.02)
    assert counts.var() / counts.mean() == pytest.approx(index, rel=0.3)
    stretches = counts[: len(counts) // minutes * minutes].reshape(-1, minutes)
    assert np.mean(stretches.var(axis=1) / stretches.mean(axis=1)) == pytest.approx(index, rel=0.3)


@pytest.mark.parametrize(("name", "cv"), [("azure-conv-2023", 1.04), ("azure-code-2023", 10.3)])
def test_gaps_within_five_minutes_are_as_bursty_as_in_the_trace(name, cv):
    arrival_s = load(name).sample(np.random.default_rng(8), horizon_s=60 * 3600.0).arrival_s
    window = (arrival_s // 300.0).astype(int)
    gaps = np.diff(arrival_s)
    groups = np.split(
        gaps[np.diff(window) == 0], np.flatnonzero(np.diff(window[1:][np.diff(window) == 0])) + 1
    )
    values = [g.std() / g.mean() for g in groups if len(g) > 10]
    assert np.median(values) == pytest.approx(cv, rel=0.2)


def test_every_name_loads_and_says_where_it_comes_from():
    assert set(names()) == {*TRACES, *PAPER, "uniform-mixed", "conversations", "chat-and-batch"}
    for name in names():
        w = load(name)
        assert w.name == name and w.description and w.source
        if name in TRACES:
            assert w.licence and w.date and "https://" in w.source
            parameters = json.loads((files("llmgym.workloads") / "data" / f"{name}.json").read_text())
            assert {"source", "url", "licence", "attribution", "date"} <= set(parameters)
    assert "no arrival times" in load("sharegpt").description


@pytest.mark.parametrize("name", PAPER)
def test_uniform_laws_have_the_bounds_of_the_paper(name):
    a, b, c, d = PAPER[name]
    r = load(name).sample(np.random.default_rng(0), n=60_000)
    assert (r.prompt_tokens.min(), r.prompt_tokens.max()) == pytest.approx((a, b), abs=1)
    assert (r.output_tokens.min(), r.output_tokens.max()) == pytest.approx((c, d), abs=1)
    assert load(name).expectation(lambda s, o: s * o) == pytest.approx((a + b) * (c + d) / 4)
    assert load(name).sample(np.random.default_rng(0), horizon_s=50.0).arrival_s[-1] <= 50.0


def test_uniform_mixed_turns_round_half_way():
    w = load("uniform-mixed")
    for r in (
        w.sample(np.random.default_rng(0), n=1000),
        w.with_requests(1000).sample(np.random.default_rng(0), n=1000),
    ):
        assert np.array_equal(r.request_class, np.repeat([0, 1], 500))
        assert r.prompt_tokens[:500].max() > 1066 >= r.prompt_tokens[500:].max()
        assert r.output_tokens[500:].max() > 1066 >= r.output_tokens[:500].max()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownName, match=r"azure-conv-2024.*Did you mean 'azure-conv-2023'.*sharegpt-8k"):
        load("azure-conv-2024")


def test_prediction_errors_are_those_of_the_learned_predictor():
    # ln(predicted / true) over 40,000 rows: mean -0.118, sd 0.600, p10 -0.501, p50 0.027, p90 0.057
    from llmgym.workloads import RequestClass, Workload, fixed, poisson

    w = Workload("long", poisson(1.0), (RequestClass(fixed(1), fixed(100_000)),))

    def errors(scale):
        r = w.sample(np.random.default_rng(4), n=400_000, information="noisy", noise_scale=scale)
        return np.log(r.predicted_tokens / r.output_tokens)

    e = errors(1.0)
    assert e.mean() == pytest.approx(-0.118, abs=0.006)
    assert e.std() == pytest.approx(0.600, rel=0.02)
    assert np.quantile(e, [0.1, 0.5, 0.9]) == pytest.approx([-0.501, 0.027, 0.057], abs=0.01)
    assert errors(0.5) == pytest.approx(0.5 * e, abs=0.01)
    assert np.all(errors(0.0) == 0.0)


def test_mean_prediction_is_the_mean_of_the_class():
    r = load("uniform-mixed").sample(np.random.default_rng(0), n=10, information="mean")
    assert r.predicted_tokens.tolist() == [538] * 5 + [1072] * 5
