"""Unmask: which masked positions a masked-diffusion language model reveals at each denoiser call.

Luxembourg, Permuter and Nachmani, "Plan for Speed: Dilated Scheduling for Masked Diffusion Language Models", ICML 2026 (arXiv
2506.19037): all tokens that one call reveals are drawn independently of each other, and what they depend on each other is lost.
"""

from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete

from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.settings import settled
from llmgym.envs.unmask.costs import call_times
from llmgym.envs.unmask.kernels import KERNELS, redraw_lane
from llmgym.envs.unmask.process import LONGEST, phrases_of
from llmgym.envs.unmask.scenarios import ACTIONS, MODES, SCENARIOS, Scenario
from llmgym.envs.unmask.schedule import dus_levels, level_of
from llmgym.envs.unmask.state import (
    FEATURES,
    MACROS,
    Config,
    Episode,
    Metrics,
    Observation,
    Params,
    Position,
    State,
)
from llmgym.envs.unmask.tables import QUANTITIES, Excerpts, load
from llmgym.envs.unmask.typical import typical_log
from llmgym.errors import InvalidArgument


class Unmask(Simulation):
    """The simulation behind `llmgym/Unmask-v0`; `UnmaskEnv` lists the arguments.

    Attributes:
        processes: the languages; one that is not used for measured text.
        excerpts: the measured text; None: phrases.
        vocabulary: tokens of the language or of the model.
        call_s: what a call takes, by block, seconds.
    """

    kernels = KERNELS
    metrics = Metrics
    view = "llmgym.envs.unmask.view"
    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: it is what the episode was drawn from",
        "lane.checksum": "at the end of the episode",
        "truth": "token by token, when it is revealed",
        "position.drawn": "when it is revealed",
        "position.log_drawn": "when it is revealed",
        "position.right": "when it is revealed",
    }
    shown: ClassVar[frozenset[str]] = frozenset(
        {
            "lane.process",
            "lane.streams",
            "lane.kind",
            "lane.price",
            "lane.excerpt",
            "position.confidence",
            "position.entropy",
            "position.margin",
            "token",
            "prior",
            "ends",
            "now",
            "law",
            "tail",
        }
    )

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        **settings: Any,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "Unmask", ("about",))
        if chosen.tokens % chosen.block:
            raise InvalidArgument(f"tokens={chosen.tokens}: expected a multiple of block={chosen.block}")
        if chosen.lambda_low > chosen.lambda_high:
            raise InvalidArgument(
                f"lambda_low={chosen.lambda_low!r}: expected at most lambda_high={chosen.lambda_high!r}"
            )
        if chosen.prompt < max(chosen.interleave):
            raise InvalidArgument(
                f"prompt={chosen.prompt}: expected a token for each of {max(chosen.interleave)} interleaved texts"
            )
        self.excerpts = load(chosen.text)
        if self.excerpts is not None:
            _check_measured(chosen, self.excerpts)
        self.vocabulary = chosen.vocabulary if self.excerpts is None else self.excerpts.vocabulary
        self.scenario = chosen
        self.processes = tuple(
            phrases_of(
                chosen.process_seed + n,
                chosen.topics,
                chosen.phrases,
                chosen.vocabulary,
                float(chosen.noise),
                float(chosen.alpha),
            )
            for n in range(1 if self.excerpts else chosen.processes)
        )
        self.call_s = call_times(chosen.clock, chosen.tokens, chosen.block, chosen.context, chosen.reuse)
        self.params = self._parameters()
        block = chosen.block
        about = f"row by row: {', '.join(FEATURES)}; distances and places over the block, entropies over ln V"
        own = (0,) if chosen.action == "add" else ()
        rows = Field(
            "position",
            block * len(FEATURES),
            -1.0,
            1.0,
            f"{block} rows of {len(FEATURES)}",
            about,
            block,
            own,
        )
        self.layout = Layout([rows], Observation)
        if chosen.action == "set":
            self.action_space = MultiDiscrete(np.full(block, 2))
        else:
            self.action_space = Discrete(block + 1 if chosen.action == "add" else len(MACROS))

    def _parameters(self) -> Params:
        chosen, excerpts, first = self.scenario, self.excerpts, self.processes[0]
        block, calls = chosen.block, len(self.call_s)
        config = Config.pack(
            chosen,
            processes=len(self.processes),
            score=MODES[chosen.mode],
            measured=int(excerpts is not None),
            vocabulary=self.vocabulary,
            set_action=ACTIONS.index(chosen.action),
            match=first.match,
            miss=first.miss,
            invalid_cost=self.invalid_cost,
        )
        onward = np.stack([one.onward for one in self.processes])
        typical = np.full((len(self.processes), len(chosen.interleave)), np.nan)
        if excerpts is None:
            for n, one in enumerate(self.processes):
                typical[n] = [
                    typical_log(one, chosen.prompt, chosen.tokens, streams) for streams in chosen.interleave
                ]
        nothing = (1, 1 + block, block)
        return Params(
            config,
            np.stack([one.lengths for one in self.processes]),
            np.stack([one.words for one in self.processes]),
            onward,
            np.ascontiguousarray(onward.transpose(0, 1, 3, 2)),
            np.stack([one.start for one in self.processes]),
            level_of(dus_levels(block)),
            np.array(chosen.interleave, np.int64),
            typical,
            np.zeros((*nothing, len(QUANTITIES)), np.float32) if excerpts is None else excerpts.values,
            np.zeros(nothing, np.uint8) if excerpts is None else excerpts.right,
            np.zeros(nothing, np.float32) if excerpts is None else excerpts.damage,
            np.zeros(len(QUANTITIES)) if excerpts is None else excerpts.shares,
            self.call_s,
            self.call_s / self.call_s.mean() if chosen.cost == "time" else np.ones(calls),
        )

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        s = self.scenario
        text = s.prompt + s.tokens
        return State(
            Episode.zeros(lanes),
            Position.zeros(lanes, s.block),
            np.zeros((lanes, s.block), np.int8),
            np.zeros((lanes, s.block), np.int8),
            np.zeros((lanes, text), np.int16),
            np.zeros((lanes, text), np.int16),
            np.zeros((lanes, s.tokens), np.int16),
            np.zeros((lanes, s.tokens), np.float32),
            np.zeros((lanes, max(s.interleave), s.topics, s.phrases, LONGEST)),
            np.zeros((lanes, s.block + 1, s.topics, s.phrases)),
            np.zeros((lanes, s.topics, s.phrases, LONGEST)),
            np.zeros((lanes, max(s.vocabulary, s.block))),
            np.zeros((lanes, max(s.phrases, s.block))),
        )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Draw anew the tokens that are still masked: of the true text given those that are known, and what each would be given.

        Args:
            state: arrays of all lanes.
            lane: the lane that gets another future.
            key: seeds the other world, 0 to 2**63 - 1.
        """
        fell = state.position["fall"][lane].copy()
        redraw_lane(state, self.params, lane, np.uint64(key))
        state.position["fall"][lane] = fell

    def expected_return(self, metrics: dict[str, float]) -> float:
        """Minus what the calls cost, minus lambda times the divergence, less penalties."""
        quality = metrics["lambda_calls_per_nat"] * metrics["kl_nats"]
        return -metrics["cost_calls"] - quality - metrics["penalty"]


def _check_measured(chosen: Scenario, excerpts: Excerpts) -> None:
    """Raise `InvalidArgument` where settings do not go with measured text."""
    if chosen.mode != "score":
        raise InvalidArgument(f"mode={chosen.mode!r}: measured text is scored, mode='score'")
    if chosen.block != excerpts.block:
        raise InvalidArgument(
            f"block={chosen.block}: {excerpts.name} was measured in blocks of {excerpts.block}"
        )
    if chosen.interleave != (1,) or chosen.denoiser_error != 0.0:
        raise InvalidArgument("interleave and denoiser_error are of phrases: with measured text (1,) and 0")


class UnmaskEnv(LaneEnv):
    """Which masked positions a masked-diffusion language model reveals at each denoiser call.

    ## Description
    Such a model begins with a text that is all masked. A call of its denoiser gives a probability law for each masked position,
    given all tokens that are known. One can reveal one position a call, which is exact and slow, or many, which is fast and wrong:
    their tokens are drawn independently of each other, though they depend on each other. The text is filled block by block from
    left to right; within a block the agent chooses the set that each call reveals.

    The text comes from a random language of phrases (`llmgym.envs.unmask.process`) of which every probability can be computed. So
    the denoiser is exact, and what a call loses is a number: with S what is known and I what is revealed, it adds
    sum over i of ln p(x_i | S) - ln p(x_I | S) to ln q(x) - ln p(x), where q is the law of the generated text and p the true one.
    The mean of the sum is the Kullback-Leibler divergence of q from p.

    ## Action Space
    - `action="add"` (default): `Discrete(block + 1)`. i < block chooses position i for the next call, block fires the call.
      Masked: positions that are known or chosen, and firing with nothing chosen. Choosing costs nothing.
    - `action="set"`: `MultiDiscrete([2] * block)`, the whole set of a call at once; known positions are masked. An empty set
      reveals the surest position.
    - `action="macro"`: `Discrete(10)`: the next level of DUS; the surest 1, 2, 4 or 8; EB with 0.5, 1 or 2 bits; the surest
      quarter with the widest gaps; all.

    A masked action does nothing, is counted in `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes it an
    error.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["position"]` is the slice of the rows of all positions, 11 numbers each:
    what the denoiser says (confidence, entropy, margin, what the entropy fell by with the last call), and where the position is
    (distance to known and to chosen ones, place, level of DUS). The first fields tell the block, the calls, and lambda.

    ## Rewards
    Minus the cost of a call, minus lambda times what it adds to the divergence, when it is fired; 0 for choosing. The return is
    minus `cost_calls`, minus lambda times `kl_nats`, less penalties. A call costs 1, or with `cost="time"` its time over that of
    the mean call. What a single call adds can be negative; its mean cannot.

    With `mode="score"` the tokens of a true text are revealed, and the divergence of p from q is estimated instead. So it is with
    text that was measured on a model (`text`, see `llmgym.envs.unmask.tables`), whose law p is that of the model itself.

    ## Starting State
    A prompt of true tokens, everything else masked. Language, price, prompt, and one number for each position that its token is
    drawn by are drawn from the seed, whatever is decided.

    ## Episode End
    Termination when all tokens are revealed. Truncation after 64 steps a token, which only masked actions reach.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/Unmask-v0", scenario="small", lambda_low=1.0, lambda_high=1.0)
    envs = gymnasium.make_vec("llmgym/Unmask-v0", num_envs=256, scenario="columns")
    ```

    Args:
        scenario: `paper`, `real`, `mixed`, `stress`, `small`, `columns`, or a `Scenario` (see `llmgym.envs.unmask.scenarios`). Each
            setting can be given as an argument of its own: `tokens`, `block`, `prompt`, `text`, `mode`, `action`, `lambda_low`,
            `lambda_high`, `cost`, `clock`, `context`, `reuse`, `interleave`, `show_interleave`, `processes`, `process_seed`,
            `topics`, `phrases`, `vocabulary`, `noise`, `alpha`, `denoiser_error`, `error_tokens`.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, mode, clock or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = Unmask


UnmaskVectorEnv = vector_env(UnmaskEnv)
