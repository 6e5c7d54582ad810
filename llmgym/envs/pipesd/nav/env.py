"""PipeSDNav: keep drafting, upload, or have the draft verified, token by token.

From "PipeSD: An Efficient Cloud-Edge Collaborative Pipeline Inference Framework with Speculative Decoding" (ICML 2026, arXiv
2605.13319): a small
model on an edge device drafts, a large one in the cloud verifies, and a slow uplink lies between them.
"""

import math
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from llmgym.core.checks import choice, number
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.envs.pipesd import bandwidth, draft_tokens, uplink
from llmgym.envs.pipesd import hidden as pipesd_hidden
from llmgym.envs.pipesd.draft_tokens import Chain, Table
from llmgym.envs.pipesd.estimates import ESTIMATE, FIRST_LENGTH, LOG, MEMORY
from llmgym.envs.pipesd.nav.kernels import KERNELS, REWARD_S
from llmgym.envs.pipesd.scenarios import COUNTS, Scenario, link_of, resolve_scenario
from llmgym.envs.pipesd.state import (
    CLIENT,
    INTERVAL,
    INTERVALS,
    LANE,
    METRICS,
    NUMBER,
    RECENT,
    WAITING,
    Params,
    State,
)


def parameters(chosen: Scenario, text: Chain | Table, **numbers: float) -> Params:
    """What the compiled world of a scenario is told; `numbers` go into its record."""
    record = np.zeros(1, NUMBER)
    link = link_of(chosen)
    for name in ("clients", "proactive", "tokens", "change_gamma", "change_rate"):
        record[name] = getattr(chosen, name)
    record["count"], record["most"] = COUNTS[chosen.count], chosen.max_draft
    record["change_at"] = 2**60 if chosen.change_at is None else chosen.change_at
    record["gamma"], record["jitter"], record["downlink"] = (
        chosen.gamma_s,
        chosen.gamma_jitter,
        chosen.downlink_s,
    )
    record["gamma_wait"] = chosen.gamma_s if chosen.gamma_wait_s is None else chosen.gamma_wait_s
    record["alpha"], record["megabytes"] = link.alpha_s, link.token_mb
    record["verify"], record["verify_token"] = link.verify_s, link.verify_token_s
    for name, value in numbers.items():
        record[name] = value
    law, levels = bandwidth.pack(bandwidth.load(chosen.bandwidth), chosen.bandwidth_scale)
    return Params(record, draft_tokens.pack(text), law, levels)


def arrays(chosen: Scenario, lanes: int) -> State:
    """New arrays of the world of a scenario for this number of lanes."""
    shape = (lanes, chosen.clients)
    longest = max(chosen.max_draft, FIRST_LENGTH) + 2
    return State(
        lane=np.zeros(lanes, LANE),
        client=np.zeros(shape, CLIENT),
        cursor=np.zeros(shape, draft_tokens.CURSOR),
        link=np.zeros(shape, uplink.UPLINK),
        line=np.zeros((*shape, 2 * chosen.max_draft + 8), uplink.BATCH),
        rates=np.zeros((*shape, bandwidth.load(chosen.bandwidth).seconds), np.float32),
        estimate=np.zeros(shape, ESTIMATE),
        log=np.zeros((*shape, MEMORY), LOG),
        ends=np.zeros((*shape, longest), np.int32),
        work=np.zeros((lanes, longest)),
        interval=np.zeros((lanes, INTERVALS), INTERVAL),
    )


def recount(chosen: Scenario, state: State, lane: int) -> dict[str, float]:
    """One lane counted from its raw arrays: verdicts, tokens, and bytes on the uplinks."""
    episode, clients, links = state.lane[lane], state.client[lane], state.link[lane]
    megabyte = 1e6 * link_of(chosen).token_mb
    waiting = clients["phase"] == WAITING
    on_links = sum(
        int(row["tokens"])
        for line, link in zip(state.line[lane], links, strict=True)
        for row in np.take(line, np.arange(link["first"], link["first"] + link["count"]), mode="wrap")
    )
    guessed = (waiting & (clients["guess"] > 0)).sum()
    return {
        "arrived": float(clients["asked"].sum()),
        "waiting": 0.0,
        "running": float(waiting.sum()),
        "done": float(clients["verdicts_all"].sum()),
        "rejected": 0.0,
        "clock_s": float(episode["clock_s"]),
        "energy_j": float(episode["energy_j"]),
        "bytes_sent": megabyte * float(links["queued"].sum()),
        "bytes_received": megabyte * float(links["carried"].sum()),
        "bytes_in_flight": megabyte * on_links,
        "work_asked": float(clients["drafted"].sum()),
        "work_done": float((clients["judged"] + clients["dropped"] + clients["guesses"]).sum() - guessed),
        "work_left": float((clients["block"] + clients["awaited"]).sum() + guessed),
    }


def described(chosen: Scenario, text: Chain | Table) -> dict[str, Any]:
    """A scenario with everything resolved, for reports."""
    law = asdict(bandwidth.load(chosen.bandwidth))
    if len(law["levels_mbps"]) > 100:  # a long trace
        law["levels_mbps"] = f"{len(law['levels_mbps'])} seconds"
    plain = asdict(replace(chosen, text=text.name, bandwidth=0.0, link="paper"))
    return plain | {
        "text": asdict(text) if isinstance(text, Chain) else {"name": text.name, **text.about},
        "bandwidth": law,
        "link": asdict(link_of(chosen)),
    }


class PipeSDNav(Simulation):
    """The simulation behind `llmgym/PipeSDNav-v0`; see `PipeSDNavEnv` for the arguments.

    Attributes:
        scenario: the settings.
        text: the source of tokens.
    """

    kernels = KERNELS
    metric_names = METRICS
    headline_metrics = {  # noqa: RUF012
        "tpt_ms": "min",
        "nav_per_token": "min",
        "acceptance": "max",
        "ecs_j_per_100_tokens": "min",
        "draft_mean_tokens": "max",
        "upload_wasted_share": "min",
    }

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        energy_weight: float = 0.0,
        invalid_action: str = "penalize",
        invalid_cost: float = 0.1,
        **settings: Any,
    ) -> None:
        self.scenario = chosen = resolve_scenario(scenario, settings, "PipeSDNav")
        number("energy_weight", energy_weight, zero=True)
        choice("invalid_action", invalid_action, ("penalize", "raise"))
        number("invalid_cost", invalid_cost, zero=True)
        self.energy_weight = float(energy_weight)
        self.raise_on_masked = invalid_action == "raise"
        self.text = draft_tokens.load(chosen.text)
        self.layout = LAYOUT
        self.action_space: Discrete[Any] = Discrete(3)
        self.params = parameters(chosen, self.text, energy_weight=energy_weight, invalid_cost=invalid_cost)

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        return arrays(self.scenario, lanes)

    hidden: ClassVar[dict[str, str]] = pipesd_hidden.HIDDEN
    shown: ClassVar[frozenset[str]] = pipesd_hidden.SHOWN

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other verdicts, texts and times to come; see `Simulation.redraw`."""
        pipesd_hidden.redraw(self.params, state, lane, self.world(key), np.random.default_rng(key))

    def audit(self, state: State, lane: int) -> dict[str, float]:
        """Recount verdicts, tokens and bytes."""
        return recount(self.scenario, state, lane)

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode: minus the clients' mean time in units of 0.1 s, less weighed energy and penalties."""
        energy = self.energy_weight * metrics["energy_j"] / self.scenario.clients
        return -metrics["client_mean_s"] / REWARD_S - energy - metrics["penalty"]

    def render(self, state: State, lane: int, mode: str) -> Any:
        """A picture or a text of one lane."""
        from llmgym.envs.pipesd.view import picture, text

        return (picture if mode == "rgb_array" else text)(self.scenario, state, lane)

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, for reports."""
        return described(self.scenario, self.text) | {"energy_weight": self.energy_weight}


LAYOUT = Layout(
    [
        Field("confidence", 1, 0, 1, "probability", "P(D_n), the draft's of its newest token"),
        Field("product", 1, 0, 1, "probability", "C_1, product of the confidences of this draft"),
        Field("product.deficit", 1, 0, 1, "log scale", "-ln C_1, from 0 (certain) to 1 (6 or more)"),
        Field("recent.deficit", RECENT, 0, 1, "log scale", "-ln P of the last tokens, the newest first"),
        Field("block", 1, 0, 4, "32 tokens", "drafted since the last request (while waiting: ahead)"),
        Field("unsent", 1, 0, 4, "32 tokens", "of these, not yet uploaded"),
        Field("plan", 1, 0, 4, "32 tokens", "still to be drafted before the plan of batches uploads; 0: now"),
        Field(
            "link",
            1,
            0,
            4,
            "s",
            "until what is in line on the uplink will be through, by alpha and beta; 0: it is free",
        ),
        Field("waiting", 1, 0, 1, "flag", "a verdict is awaited: the tokens of this draft are ahead of it"),
        Field("waiting.elapsed", 1, 0, 4, "s", "since the request"),
        Field("waiting.guess", 1, 0, 1, "log scale", "-ln P of the guess of the target's own token"),
        Field("waiting.tokens", 1, 0, 4, "32 tokens", "at the cloud"),
        Field("waiting.product", 1, 0, 1, "probability", "product of their confidences"),
        Field("alpha", 1, 0, 4, "0.25 s", "estimate: to start an upload"),
        Field("beta", 1, 0, 4, "0.25 s", "estimate: of a token of it"),
        Field("gamma", 1, 0, 4, "0.25 s", "estimate: to draft a token"),
        Field("acceptance", 1, 0, 1, "share", "of the tokens judged so far (and one more)"),
        Field("window", 1, 0, 4, "32 tokens", "N^, mean length of the last drafts"),
        Field("last.tokens", 1, 0, 4, "32 tokens", "of the last verdict"),
        Field("last.accepted", 1, 0, 4, "32 tokens", "of these, accepted"),
        Field("last.product", 1, 0, 1, "probability", "product of their confidences"),
        Field("last.seconds", 1, 0, 4, "s", "from the end of their upload to the verdict"),
        Field("verdicts", 1, 0, 1, "2", "that came since this client's last turn"),
        Field("left", 1, 0, 1, "episode", "tokens still to make (waiting: if all are accepted)"),
        Field("client", 1, 0, 1, "clients", "number of the client whose turn it is"),
    ]
)
assert math.isclose(LAYOUT.size, 24 + RECENT)


class PipeSDNavEnv(LaneEnv):
    """Keep drafting, upload, or have the draft verified, token by token.

    ## Description
    A client drafts a token every `gamma` seconds. Drafted tokens reach the cloud over an uplink that carries one batch at a
    time, k tokens in
    alpha + k beta seconds. A request for a verdict makes the target model check all tokens of the draft at once: the longest
    right prefix is accepted,
    and one token of its own comes with it. After every drafted token you decide: go on, upload what is unsent, or upload it
    and ask.

    While it waits, the client drafts on: first a guess of the target's own token (nothing to decide on), then tokens after it.
    If all was accepted and the guess
    was right, the waiting tokens are *promoted*: they are the beginning of the next draft, and those uploaded stay uploaded.
    Otherwise they are
    dropped; batches in line are withdrawn, and one that is on the link goes through for nothing.

    Several clients share a cloud that verifies first come, first served; each has an uplink and a text of its own. A step
    belongs to the client
    whose token comes next.

    ## Action Space
    `Discrete(3)`: 0 go on, 1 upload what is unsent, 2 upload it and ask for a verdict. While waiting, 2 means: draft no more,
        and ask as soon as these tokens are
    promoted. Masked: 0 and 1 where the draft has `max_draft` tokens or could be all that is missing. Such an action asks, is
    counted in
    `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes it an error.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["product"]` is the slice of a field, `layout.markdown()` prints the table.
    Everything is of the client whose
    turn it is, and nothing is there that an edge could not know: what is accepted shows at verdicts only, uploads are timed
    when they are through.

    ## Rewards
    Minus the time that passes in units of 0.1 s, times the share of clients that are not done, less `energy_weight` times the
    joules of the cloud, for each
    client. So the return is minus the mean time of a client from the first token on, less weighed energy and penalties.

    ## Starting State
    Nothing is uploaded; each client has been timed on eight probes. The first token of the first client is there. Texts and
    bandwidths are drawn from
    the seed: position n of a text is the same for every policy.

    ## Episode End
    Termination when every client has made `tokens` tokens.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/PipeSDNav-v0", scenario="far", tokens=500)
    envs = gymnasium.make_vec("llmgym/PipeSDNav-v0", num_envs=256, scenario="small")
    ```

    Args:
        scenario: `s1` to `s4`, the same with `-gsm8k`, `compressed`, `far`, `mobile`, `shared`, `small`, `small-far`,
            `small-paper`, or a `Scenario` (see
            `llmgym.envs.pipesd.scenarios`). Each of its settings can be given as an argument of its own: `text`, `link`,
            `bandwidth`,
            `bandwidth_scale`, `gamma_s`, `gamma_wait_s`, `gamma_jitter`, `downlink_s`, `clients`, `proactive`, `tokens`, `count`,
            `max_draft`, `change_at`, `change_gamma`, `change_rate`.
        energy_weight: reward of a joule, at least 0.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, source, link, bandwidth or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = PipeSDNav


class PipeSDNavVectorEnv(LaneVectorEnv):
    """Many lanes of `PipeSDNavEnv`; see `llmgym.core.env.LaneVectorEnv` for the arguments of every vector environment."""

    simulation_class = PipeSDNav
