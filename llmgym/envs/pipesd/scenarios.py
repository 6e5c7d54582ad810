"""Scenarios of PipeSDNav and PipeSDTune: named settings of edge, uplink, cloud, text and episode.

Numbers are those of PipeSD (arXiv 2605.13319, and its released code), or fitted to its runs: least squares of the
authors' 20 runs (HumanEval,
20 Mbps) on drafted tokens and rounds gives 0.1589 s a token and 0.0841 s a round; a token is 0.29 MB (a distribution over the
whole vocabulary), which at
20 Mbps is 116 ms, so that drafting takes about 40 ms. Drafting on slower devices follows gamma = gamma_1 5.1 GHz / f.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmgym.core.checks import choice, number, whole
from llmgym.core.settings import settled
from llmgym.envs.pipesd import bandwidth, draft_tokens
from llmgym.envs.pipesd.bandwidth import Bandwidth
from llmgym.envs.pipesd.draft_tokens import Chain, Table
from llmgym.envs.pipesd.state import ACCEPTED, OUTPUT
from llmgym.errors import InvalidArgument

COUNTS = {"output": OUTPUT, "accepted": ACCEPTED}
LEAST_ACCEPTANCE = 1e-6
"""Of tokens, where only accepted ones count: with none of them a client would draft for ever."""
GAMMA_1_S = 0.04
"""Laptop: 37 to 43 ms."""


@dataclass(frozen=True)
class Link:
    """What a token weighs on the uplink and how long a verification takes.

    Attributes:
        about: one line.
        alpha_s: to start an upload.
        token_mb: megabytes of a token.
        verify_s: of a verification.
        verify_token_s: of each token of it, and of one more.
    """

    about: str
    alpha_s: float
    token_mb: float
    verify_s: float
    verify_token_s: float = 0.0005


LINKS = {
    "paper": Link("0.29 MB a token: the distribution over the vocabulary", 0.05, 0.29, 0.03),
    "compressed": Link("12.5 KB a token (5 ms at 20 Mbps), a slower cloud", 0.05, 0.0125, 0.1),
    "far": Link("1 KB a token, a cloud far away", 0.05, 0.001, 0.15),
}
"""With `paper` an upload costs more than a verdict that also yields a token, so the shortest drafts win; energy pulls the
other way."""


@dataclass(frozen=True)
class Scenario:
    """Settings of PipeSDNav and PipeSDTune; every one of them is also an argument of the environments.

    Attributes:
        about: one line.
        text: which tokens are accepted, see `llmgym.envs.pipesd.draft_tokens.load`: a name, a `Chain` or a `Table`.
        link: name of a `Link`, or one.
        bandwidth: Mbit/s, or a law of it, see `llmgym.envs.pipesd.bandwidth.load`.
        bandwidth_scale: what the law is multiplied by.
        gamma_s: to draft a token.
        gamma_wait_s: the same while a verdict is awaited; None for no difference. The authors slow a device down with a delay
            that does not apply to waiting
            tokens: 0.04 reproduces their scenarios 2 and 3.
        gamma_jitter: standard deviation of ln(seconds) of a token.
        downlink_s: of a verdict.
        clients: that share the cloud, each with an uplink of its own.
        proactive: whether a client drafts while it waits.
        tokens: of an episode and client.
        count: `output` (accepted tokens and one of the target for each verdict) or `accepted`: what makes up `tokens` and the
            time per token.
        max_draft: tokens of a draft at most.
        change_at: tokens of a client after which its speeds change; None for never.
        change_gamma: factor of drafting time then.
        change_rate: factor of bandwidth then.
    """

    about: str
    text: str | Chain | Table = "humaneval"
    link: str | Link = "paper"
    bandwidth: float | str | Bandwidth = 20.0
    bandwidth_scale: float = 1.0
    gamma_s: float = GAMMA_1_S
    gamma_wait_s: float | None = None
    gamma_jitter: float = 0.0
    downlink_s: float = 0.0
    clients: int = 1
    proactive: bool = True
    tokens: int = 1000
    count: str = "output"
    max_draft: int = 128
    change_at: int | None = None
    change_gamma: float = 1.0
    change_rate: float = 1.0


SCENARIOS: dict[str, Scenario] = {
    "s1": Scenario("the paper's scenario 1: a laptop at 20 Mbps, HumanEval"),
    "s2": Scenario("scenario 2: a phone (2.5 GHz)", gamma_s=0.075),
    "s3": Scenario("scenario 3: a small device (1.2 GHz)", gamma_s=0.153),
    "s4": Scenario("scenario 4: a laptop, 10 to 80 Mbps, anew every 20 s", bandwidth="10-80-mbps"),
    "s1-gsm8k": Scenario("scenario 1 with GSM8K: drafts are accepted less often", "gsm8k", gamma_s=0.036),
    "s2-gsm8k": Scenario("scenario 2 with GSM8K", "gsm8k", gamma_s=0.0676),
    "s3-gsm8k": Scenario("scenario 3 with GSM8K", "gsm8k", gamma_s=0.1377),
    "s4-gsm8k": Scenario("scenario 4 with GSM8K", "gsm8k", gamma_s=0.036, bandwidth="10-80-mbps"),
    "compressed": Scenario("tokens of 12.5 KB: long drafts pay", link="compressed"),
    "far": Scenario("tokens of 1 KB to a cloud far away", link="far"),
    "mobile": Scenario(
        "compressed tokens over a fluctuating 4G uplink, a tenth of what downloads get, uneven drafting",
        link="compressed",
        bandwidth="4g-driving",
        bandwidth_scale=0.1,
        gamma_jitter=0.2,
    ),
    "shared": Scenario("four clients and one cloud, compressed tokens", link="compressed", clients=4),
    "small": Scenario(
        "compressed tokens, 128 of them: to train on in minutes", link="compressed", tokens=128
    ),
    "small-far": Scenario("the same with a cloud far away", link="far", tokens=128),
    "small-paper": Scenario("the same with the paper's tokens", tokens=128),
}


TUNING: dict[str, Scenario] = {
    **{
        name: replace(SCENARIOS[name], tokens=2000)
        for name in ("s1", "s2", "s3", "s4", "s1-gsm8k", "compressed", "far", "mobile")
    },
    "change": replace(
        SCENARIOS["compressed"],
        about="after half of the tokens the device drafts half as fast, over a tenth of the bandwidth",
        tokens=4000,
        change_at=2000,
        change_gamma=2.0,
        change_rate=0.1,
    ),
    "small": replace(
        SCENARIOS["compressed"], about="compressed tokens, 1,000 of them: to train on in minutes"
    ),
}
"""Scenarios of PipeSDTune."""


def resolve_scenario(
    scenario: str | Scenario,
    settings: dict[str, Any],
    of: str,
    known: Mapping[str, Scenario] = SCENARIOS,
) -> Scenario:
    """The scenario with the arguments put in, checked.

    Raises:
        UnknownName: a scenario, a setting or a choice that does not exist.
        InvalidArgument: a number out of range.
    """
    chosen: Scenario = settled(scenario, known, settings, of, ("about",))
    choice("count", chosen.count, COUNTS)
    whole("clients", chosen.clients, 1, 64)
    whole("tokens", chosen.tokens, 1, 10_000_000)
    whole("max_draft", chosen.max_draft, 1, 1024)
    number("gamma_s", chosen.gamma_s)
    if chosen.gamma_wait_s is not None:
        number("gamma_wait_s", chosen.gamma_wait_s)
    if chosen.change_at is not None:
        whole("change_at", chosen.change_at, 0)
    for name in ("gamma_jitter", "downlink_s"):
        number(name, getattr(chosen, name), zero=True)
    for name in ("bandwidth_scale", "change_gamma", "change_rate"):
        number(name, getattr(chosen, name))
    if not isinstance(chosen.proactive, bool):
        raise InvalidArgument(f"proactive={chosen.proactive!r}: expected True or False")
    text = draft_tokens.load(chosen.text)
    if chosen.count == "accepted" and draft_tokens.least_acceptance(text) < LEAST_ACCEPTANCE:
        raise InvalidArgument(
            f"count='accepted': an episode with text={text.name!r} has no end, as next to none of its tokens is accepted"
        )
    bandwidth.load(chosen.bandwidth)
    link_of(chosen)
    return chosen


def link_of(chosen: Scenario) -> Link:
    """The link of a scenario, checked."""
    link = chosen.link
    if not isinstance(link, Link):
        link = LINKS[choice("link", link, LINKS)]
    for name in ("alpha_s", "verify_s", "verify_token_s"):
        number(name, getattr(link, name), zero=True)
    number("token_mb", link.token_mb)
    return link
