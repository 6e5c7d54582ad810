"""Scenarios of PipeSDNav and PipeSDTune: named settings of edge, uplink, cloud, text and episode.

Numbers are those of PipeSD (arXiv 2605.13319, and its released code), or fitted to its runs: least squares of the authors' 20
runs (HumanEval, 20 Mbps) on drafted tokens and rounds gives 0.1589 s a token and 0.0841 s a round; a token is 0.29 MB (a
distribution over the whole vocabulary), which at 20 Mbps is 116 ms, so that drafting takes about 40 ms. Drafting on slower
devices follows gamma = gamma_1 5.1 GHz / f.
"""

from dataclasses import dataclass, replace
from typing import Any

from llmgym.core import settings
from llmgym.core.checks import choice
from llmgym.core.settings import flag, given, option, quantity
from llmgym.envs.pipesd import bandwidth as laws
from llmgym.envs.pipesd import draft_tokens
from llmgym.envs.pipesd.bandwidth import Bandwidth
from llmgym.envs.pipesd.draft_tokens import Chain, Table
from llmgym.envs.pipesd.state import ACCEPTED, OUTPUT
from llmgym.errors import InvalidArgument

COUNTS = {"output": OUTPUT, "accepted": ACCEPTED}
LEAST_ACCEPTANCE = 1e-6
"""Least acceptance of tokens where only accepted ones count: with none of them a client would draft for ever."""
GAMMA_1_S = 0.04
"""Time to draft a token on the paper's laptop, seconds; measured were 37 to 43 ms."""


@dataclass(frozen=True)
class Link:
    """What a token weighs on the uplink and how long a verification takes."""

    about: str
    alpha_s: float = quantity(..., "Time to start an upload, seconds.", zero=True, unit="s")
    token_mb: float = quantity(..., "Size of a token, megabytes.", unit="MB")
    verify_s: float = quantity(..., "Time of a verification, seconds.", zero=True, unit="s")
    verify_token_s: float = quantity(
        0.0005,
        "Time that each token of a verification, and one more, adds to it, seconds.",
        zero=True,
        unit="s",
    )


LINKS = {
    "paper": Link("0.29 MB a token: the distribution over the vocabulary", 0.05, 0.29, 0.03),
    "compressed": Link("12.5 KB a token (5 ms at 20 Mbps), a slower cloud", 0.05, 0.0125, 0.1),
    "far": Link("1 KB a token, a cloud far away", 0.05, 0.001, 0.15),
}
"""With `paper` an upload costs more than a verdict that also yields a token, so the shortest drafts win; energy pulls the other
way."""


def _check_text(name: str, value: Any) -> None:
    draft_tokens.load(value)


def _check_link(name: str, value: Any) -> None:
    if not isinstance(value, Link):
        choice(name, value, LINKS)
    else:
        settings.check(value)


def _check_bandwidth(name: str, value: Any) -> None:
    laws.load(value)


@dataclass(frozen=True)
class Scenario:
    """Settings of PipeSDNav and PipeSDTune; every one of them is also an argument of the environments."""

    about: str
    text: str | Chain | Table = given(
        "humaneval",
        "Which drafted tokens are accepted, see `llmgym.envs.pipesd.draft_tokens.load`.",
        allowed="a name, a `Chain`, a `Table`",
        check=_check_text,
    )
    link: str | Link = given(
        "paper",
        "What a token weighs on the uplink and how long a verification takes.",
        allowed=f"{', '.join(f'`{name}`' for name in LINKS)}, a `Link`",
        check=_check_link,
    )
    bandwidth: float | str | Bandwidth = given(
        20.0,
        "Bandwidth of an uplink, Mbit/s, or a law of it, see `llmgym.envs.pipesd.bandwidth.load`.",
        allowed="> 0, a name, a `Bandwidth`",
        unit="Mbit/s",
        check=_check_bandwidth,
    )
    bandwidth_scale: float = quantity(1.0, "Factor that the law of the bandwidth is multiplied by.")
    gamma_s: float = quantity(GAMMA_1_S, "Time to draft a token, seconds.", unit="s")
    gamma_wait_s: float | None = quantity(
        None,
        "Time to draft a token while a verdict is awaited, seconds; None for `gamma_s`. The authors slow a device down with a "
        "delay that does not apply to waiting tokens: 0.04 reproduces their scenarios 2 and 3.",
        unit="s",
    )
    gamma_jitter: float = quantity(0.0, "Standard deviation of ln(seconds) of a drafted token.", zero=True)
    downlink_s: float = quantity(
        0.0, "Time that a verdict takes to the client, seconds.", zero=True, unit="s"
    )
    clients: int = settings.count(1, "Clients that share the cloud, each with an uplink of its own.", high=64)
    proactive: bool = flag(True, "Whether a client drafts while it waits.")
    tokens: int = settings.count(
        1000, "Tokens that each client makes in an episode.", high=10_000_000, unit="tokens"
    )
    count: str = option(
        "output",
        "What makes up `tokens` and the time per token: `output` (accepted tokens and one of the target for each verdict) or "
        "`accepted`.",
        COUNTS,
    )
    max_draft: int = settings.count(128, "Tokens of a draft at most.", high=1024, unit="tokens")
    change_at: int | None = settings.count(
        None, "Tokens that a client makes until its speeds change; None for never.", low=0, unit="tokens"
    )
    change_gamma: float = quantity(1.0, "Factor of the drafting time after the change.")
    change_rate: float = quantity(1.0, "Factor of the bandwidth after the change.")

    def check_together(self) -> None:
        """Raise `InvalidArgument` for an episode that has no end."""
        text = draft_tokens.load(self.text)
        if self.count == "accepted" and draft_tokens.least_acceptance(text) < LEAST_ACCEPTANCE:
            raise InvalidArgument(
                f"count='accepted': an episode with text={text.name!r} has no end, as next to none of its tokens is accepted"
            )


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


def link_of(chosen: Scenario) -> Link:
    """The link of a scenario."""
    return chosen.link if isinstance(chosen.link, Link) else LINKS[chosen.link]
