"""Forage: which part of a long text to open next, at which grain, what to write down, and when to stop.

Zhang, Wang, Hu, Yang, Gao, Shen and Wan, "SCOUT: Active Information Foraging for Long-Text Understanding with Decoupled Epistemic
States", ICML 2026 (arXiv 2605.04496): a document is searched instead of being read, what was seen is kept apart from what is held
to be known, and the gap between the latter and the question says what to search next. Here are the decisions and failures of that,
with exact books and without text: the paper publishes results, and the rates below them are chosen so that these come out.
"""

from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from llmgym import profiles
from llmgym.core.checks import choice
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.settings import settled
from llmgym.envs.forage.bank import bank_of
from llmgym.envs.forage.hidden import redraw
from llmgym.envs.forage.kernels import KERNELS
from llmgym.envs.forage.scenarios import SCENARIOS, Scenario
from llmgym.envs.forage.state import (
    ACTIONS,
    FOCUS,
    KEY_COLUMNS,
    KEY_SHOWN,
    KEYS,
    PASSAGES,
    READ,
    SCAN,
    SLOT_COLUMNS,
    SLOT_SHOWN,
    SLOTS,
    Config,
    Episode,
    Key,
    Metrics,
    Observation,
    Params,
    Passage,
    State,
)

REWARDS = ("probability", "outcome")
"""Whether the reward of an answer is the probability that it is right, or a draw of it."""
LAYOUT = Layout(
    [
        Field(
            "key",
            KEYS * KEY_COLUMNS,
            -1.0,
            1.0,
            "-",
            f"a row for each of 4 facts: {'; '.join(KEY_SHOWN)}",
            rows=KEYS,
            actions=(FOCUS,),
        ),
        Field(
            "slot",
            SLOTS * SLOT_COLUMNS,
            -1.0,
            1.0,
            "-",
            f"a row for each of 16 candidates, the likeliest first: {'; '.join(SLOT_SHOWN)}",
            rows=SLOTS,
            actions=(READ, SCAN),
        ),
    ],
    Observation,
)


class Forage(Simulation):
    """The simulation behind `llmgym/Forage-v0`; `ForageEnv` lists the arguments.

    Attributes:
        budget_tokens: tokens after which an answer is forced.
    """

    kernels = KERNELS
    metrics = Metrics
    layout = LAYOUT
    view = "llmgym.envs.forage.view"
    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: it is what the episode was drawn from",
        "lane.checksum": "at the end of the episode",
        "key.passages": "never: what the terms that were used list is shown",
        "key.claim": "whether it is true: when an evaluation exposes it, or never; that there is one is shown",
        "key.pending": "whether it is true: when an evaluation exposes it, or never; that there is one is shown",
        "key.seen_true": "never",
        "key.seen_false": "never",
        "passage.chunk": "when it is listed or opened",
        "passage.listed": "when the term is used",
        "passage.claims": "that it claims something: when it is opened; whether that is true: never",
        "passage.readable": "never: a passage that yields nothing may be a right one",
        "passage.line": "when it is listed",
        "passage.glance": "when it is scanned",
        "passage.rated": "when its claim is read",
        "passage.rank": "never: a retrieval shows the claims that it found",
        "passage.ahead": "never: a retrieval shows the claims that it found",
        "passage.score": "never: a retrieval shows the claims that it found",
    }
    shown = frozenset(
        {
            "lane.facts",
            "lane.chain",
            "lane.price",
            # `redraw` changes the order of a table, as passages that speak of the fact come first, and so the last bit of a sum
            "passage.seen",
            "passage.snippet",
            "passage.scan",
            "slot",
            "posterior",
            "lane.null",
        }
    )

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        reward: str = "probability",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        **settings: Any,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "Forage", ("about",))
        choice("reward", reward, REWARDS)
        bank = bank_of(chosen)
        chosen = bank.settled
        length = chosen.chunks * chosen.chunk_tokens
        self.budget_tokens = chosen.budget_tokens or max(200_000, 4 * length)
        config = Config.pack(
            chosen,
            facts=np.cumsum(chosen.facts),
            expose=chosen.expose if chosen.anchors else chosen.expose_bare,
            price_low=chosen.price[0],
            price_high=chosen.price[1],
            cache_price=chosen.cache_price if chosen.accounting == "rebilled" else 0.0,
            budget_tokens=self.budget_tokens,
            drawn_outcome=REWARDS.index(reward),
            invalid_cost=self.invalid_cost,
        )
        self.scenario = chosen
        self.action_space = Discrete(ACTIONS)
        self.params = Params(
            config, profiles.profile_of("profile", chosen.profile).step_cost(), bank.passages, bank.sizes
        )

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        return State(
            Episode.zeros(lanes),
            Key.zeros(lanes, KEYS),
            Passage.zeros(lanes, KEYS, PASSAGES),
            np.zeros((lanes, SLOTS), np.int8),
            np.zeros((lanes, SLOTS), np.float64),
        )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Draw anew what is not known: where the facts are, which claims are true, scores to come and evaluations to come.

        Args:
            state: arrays of all lanes.
            lane: the lane that gets another truth.
            key: seeds the other world, 0 to 2**63 - 1.
        """
        redraw(self, state, lane, key)

    def expected_return(self, metrics: dict[str, float]) -> float:
        """What the answer counted, less what tokens and seconds cost, less penalties."""
        return metrics["outcome"] - metrics["token_cost"] - metrics["time_cost"] - metrics["penalty"]

    def settings(self) -> dict[str, Any]:
        """The scenario with the tokens after which an answer is forced, for reports."""
        return super().settings() | {"budget_tokens": self.budget_tokens}


class ForageEnv(LaneEnv):
    """A question about a document that is too long to read: search, look, open, write down, check, answer.

    ## Description
    A question needs one to four facts. Each stands somewhere in a document of up to a million tokens. For each fact (a *key*) there
    are three terms to search with; a term lists passages, among them the right one with some probability. A line of each is seen
    at once (its score is a weak hint), a glance costs a little and says more, opening it costs most and says whether it claims
    something. A claim that was read is written to the *epistemic state* E, with its source; an evaluation of E says what is still
    missing and may expose a false claim; the answer from E is right if every fact in it is. On a *chain*, what to look for next is
    known only from the fact before, and after a false one the search is for the wrong thing. Instead of searching, an agent can let
    an embedding retrieve parts, read in order, or read everything, and answer from all that was read, where false claims mislead
    and length dilutes. In some scenarios more than one passage holds a fact, and outdated ones contradict it.

    ## Action Space
    `Discrete(51)`:
    - 0-15 open a candidate of the key in focus, 16-31 glance at it; candidates are the likeliest first.
    - 32 search with the next term; 33 write the pending claim of the key to E; 34 evaluate E; 35 answer from E; 36-39 put a key in
      focus; 40 answer from all that was read.
    - 41-44 retrieve 5, 10, 20, 50 parts for the question, 45-48 the same for the key in focus; 49 read the next 16 parts in
      order; 50 read everything and answer.

    Masked: candidates that there are not, a second glance, a term when none is left, writing when nothing is pending, a key that
    the question does not have or that is not known yet, the key in focus, retrieving more parts than there are, an answer before
    `first_answer` actions. A masked action does nothing, is counted in `invalid_actions` and costs `invalid_cost`;
    `invalid_action="raise"` makes it an error.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["slot"]` is the slice of a field, `layout.markdown()` prints the table. `key` and
    `slot` are tables of rows, one a key and one a candidate, so that one network can score all rows. Whether a claim is true is not
    shown.

    ## Rewards
    Minus the price of the tokens of each call, and of its seconds; with the answer, the probability that it is right
    (`reward="probability"`, default), or 1 or 0 drawn with it (`"outcome"`). The return is `outcome` minus `token_cost` minus
    `time_cost`, less penalties: accuracy minus price times thousands of tokens.

    ## Starting State
    Nothing is read. Question, price and everything about the document are drawn from the seed, whatever is done.

    ## Episode End
    Termination with an answer. Truncation when tokens or actions are spent; the answer from E is then given and paid.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/Forage-v0", scenario="paper", chunks=512)
    envs = gymnasium.make_vec("llmgym/Forage-v0", num_envs=256, scenario="small")
    ```

    Args:
        scenario: `paper`, `any-price`, `long`, `short`, `sources`, `real`, `stress`, `small`, or a `Scenario` (see
            `llmgym.envs.forage.scenarios`). Each setting can be given as an argument of its own; `llmgym settings
            llmgym/Forage-v0` lists them.
        reward: `probability` or `outcome`.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, profile or setting that does not exist.
        InvalidArgument: a value out of range, or a file of passages that cannot be read; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = Forage


ForageVectorEnv = vector_env(ForageEnv)
