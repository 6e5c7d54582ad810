"""SegmentedPrefill: long prompts on one card; how each is executed, and whose next step runs.

Shang, Li, Duo, Cai and Su, "Training-Inference Consistent Segmented Execution for Long-Context LLMs", ICML 2026 (arXiv 2605.11744),
execute one prompt at a time, all in one way. Here prompts arrive at random with limits on time and on quality, and meet on a card
of limited memory.
"""

from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from llmgym.core.checks import choice
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.settings import settled
from llmgym.envs.segmented.kernels import KERNELS
from llmgym.envs.segmented.law import GIB, MODELS, device
from llmgym.envs.segmented.modes import TRAINED, alone_s, table
from llmgym.envs.segmented.scenarios import DECISIONS, SCENARIOS, Scenario
from llmgym.envs.segmented.state import (
    DONE,
    FEATURES,
    PAST,
    Config,
    Episode,
    Metrics,
    Observation,
    Params,
    Past,
    Request,
    State,
)
from llmgym.envs.segmented.world import lengths
from llmgym.errors import InvalidArgument

MEAN_POINTS = 4096
"""Points of the law of prompts that the mean time of a prefill is taken over."""


class SegmentedPrefill(Simulation):
    """The simulation behind `llmgym/SegmentedPrefill-v0`; `SegmentedPrefillEnv` lists the arguments.

    Attributes:
        decide: what is decided, "all" or "mode".
        unit_s: mean time of a prefill in the paper's mode, seconds.
        rate_rps: arrivals a second.
        rows: candidates, which is the number of actions.
    """

    kernels = KERNELS
    metrics = Metrics
    view = "llmgym.envs.segmented.view"
    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: it is what the episode was drawn from",
        "lane.checksum": "at the end of the episode",
        "request.arrival_s": "on arrival",
        "request.prompt": "on arrival",
        "request.limit_s": "on arrival",
        "request.quality": "on arrival",
        "request.group": "on arrival",
        "request.output": "when the request is done",
    }

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        decide: str = "all",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        **settings: Any,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "SegmentedPrefill", ("about",))
        self.scenario = chosen
        self.decide = choice("decide", decide, DECISIONS)
        self.params = self._params()
        config = self.params.config[0]
        window, modes, slots = int(config["window"]), len(chosen.modes), chosen.slots
        each = window * (modes + 1) + 1
        self.rows = each + 2 * slots + 1 if decide == "all" else each
        self.action_space = Discrete(self.rows)
        about = "a row of 18 entries for each action, in their order; all zeros where it is not allowed"
        self.layout = Layout(
            [Field("candidates", self.rows * FEATURES, -1.0, 1.0, "see above", about, self.rows, (0,))],
            Observation,
        )

    def _params(self) -> Params:
        chosen = self.scenario
        if chosen.prompt_least > chosen.prompt_most:
            raise InvalidArgument(
                f"prompt_least={chosen.prompt_least}: expected at most prompt_most={chosen.prompt_most}"
            )
        model, gpu = MODELS[chosen.model], device(chosen.device)
        memory_gib = gpu.memory_gib if chosen.memory_gib is None else chosen.memory_gib
        if memory_gib <= model.weights_gib:
            raise InvalidArgument(
                f"memory_gib={memory_gib:g}: expected more than the {model.weights_gib:g} GiB of the weights"
            )
        # the paper's mode comes last, for the rules that compare with it
        modes: Any = table((*chosen.modes, TRAINED), chosen.trained, chosen.model, chosen.device)
        prompts, outputs = lengths(chosen)
        u = (np.arange(MEAN_POINTS) + 0.5) / MEAN_POINTS
        sample = np.interp(u, np.linspace(0.0, 1.0, len(prompts)), prompts)
        times_s = np.zeros(MEAN_POINTS)
        alone_s(modes[-1], np.rint(sample).astype(np.int64), times_s)
        self.unit_s = float(np.mean(times_s))
        self.rate_rps = chosen.load / self.unit_s
        shares = np.array([one[0] for one in chosen.classes])
        classes = np.array([one for one in chosen.classes], np.float64)
        classes[:, 0] = np.cumsum(shares) / shares.sum()
        config = Config.pack(
            chosen,
            all=DECISIONS[self.decide],
            modes=len(chosen.modes),
            paper=len(chosen.modes),
            window=chosen.window if self.decide == "all" else 1,
            classes=len(classes),
            seats=chosen.slots,
            weights_bytes=round(model.weights_gib * GIB),
            room_bytes=round((memory_gib - model.weights_gib) * GIB),
            bytes_per_s=gpu.bytes_per_s,
            rate_rps=self.rate_rps,
            unit_s=self.unit_s,
            tpot_limit_s=np.inf if chosen.tpot_limit_s is None else chosen.tpot_limit_s,
            invalid_cost=self.invalid_cost,
        )
        return Params(config, modes, classes, prompts, outputs)

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        chosen, window = self.scenario, int(self.params.config["window"][0])
        return State(
            Episode.zeros(lanes),
            Request.zeros(lanes, chosen.requests),
            np.zeros((lanes, chosen.slots), np.int32),
            np.zeros((lanes, window), np.int32),
            Past.zeros(lanes, PAST),
            np.zeros((lanes, chosen.requests), np.float32),
        )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Draw anew the requests that are still to arrive, and what is still to come of the outputs of those that are there.

        Args:
            state: arrays of all lanes.
            lane: the lane that gets another future.
            key: seeds the other world, 0 to 2**63 - 1.
        """
        episode, requests = state.lane[lane], state.request[lane]
        other = self.world(key)
        drawn, clock_s = other.request[0], episode["clock_s"]
        n = int(np.searchsorted(requests["arrival_s"], clock_s, side="right"))
        requests[n:] = drawn[n:]
        # gaps are exponential: from now to the next arrival as from one arrival to the next
        requests["arrival_s"][n:] += clock_s - drawn["arrival_s"][n - 1]
        rng = np.random.default_rng(key)
        outputs = self.params.outputs
        knots = np.linspace(0.0, 1.0, len(outputs))
        for request in requests[:n]:
            if request["status"] < DONE:
                least = int(request["made"]) + 1
                u = rng.uniform(np.interp(least - 0.5, outputs, knots), 1.0)
                request["output"] = max(least, round(float(np.interp(u, knots, outputs))))
        episode["key"] = other.lane[0]["key"]
        parts = (requests["arrival_s"], requests["prompt"], requests["output"], requests["group"])
        episode["checksum"] = float(sum(part.astype(np.float64).sum() for part in parts))

    def expected_return(self, metrics: dict[str, float]) -> float:
        """Value of what is done, less what it lacks in quality, memory held, requests lost, rejected or left, and penalties."""
        s = self.scenario
        away = metrics["rejected"] + metrics["forfeited"]
        cost = s.quality_weight * metrics["shortfall"] + s.memory_weight * metrics["memory_gib_s"]
        cost += s.lost_cost * metrics["lost"] + s.reject_cost * away + metrics["penalty"]
        return metrics["value"] - cost

    def settings(self) -> dict[str, Any]:
        """The scenario with what is decided, the rate of arrivals and the mean time of a prefill, for reports."""
        return super().settings() | {"decide": self.decide, "rate_rps": self.rate_rps, "unit_s": self.unit_s}


class SegmentedPrefillEnv(LaneEnv):
    """Long prompts on one card: in which mode each is executed, and whose next step runs.

    ## Description
    Requests arrive at random, each with a prompt of thousands of tokens, a limit on the time to its first token and a least
    quality. The card holds the weights; what is left of its memory is shared by all requests that are admitted. A request that is
    admitted gets a mode: `full` (the whole prompt at once), `chunked-c` (exact attention, c tokens a step), `duo`, `streaming`
    (other papers' approximations, at once) or `segmented-S-M-R` (segments of S tokens that see the last M before them and R
    retrieved ones). The mode says how long each step takes, what it needs while it runs, what stays between steps and for
    decoding, and how good the answer is. Steps run one at a time and are not interrupted; between two steps another request may
    go on. A request whose prompt is done has its first token and decodes, with all others that do, until its output is complete,
    which nobody knows before. A step that does not fit into memory loses its request.

    ## Action Space
    `Discrete(window * (modes + 1) + 2 * slots + 2)`, in this order:
    - admit the k-th oldest waiting request in the m-th mode: k * modes + m. Takes no time. Masked where there is no such request
      or no free slot.
    - run the next step of the prompt in slot j. Masked where there is none.
    - evict the request in slot j, whose prompt is not done: it waits again, and what was done is lost. At most `evictions` times.
    - reject the k-th oldest waiting request.
    - decode up to `decode_tokens` tokens of all requests that decode, until the first one ends. Masked where none does.
    - wait for the next arrival. Masked when all have arrived.

    With `decide="mode"` the server works first in, first out; it decodes when later tokens are close to their limit, or no
    prompt is left. `Discrete(modes + 2)`: admit the oldest waiting request in the m-th mode, reject it, or let the server go on
    by one step (wait for an arrival if it has none). Decisions are taken when a request waits and a slot is free.

    A masked action is counted in `invalid_actions`, costs `invalid_cost`, and the server goes on by one step, first in, first out;
    `invalid_action="raise"` makes it an error.

    ## Observation Space
    A flat float32 `Box`: the server as a whole, then `candidates`, a row of 18 entries for each action in the order of the actions,
    all zeros where the action is not allowed:

    | entry | what |
    |---|---|
    | 0-5 | kind of the action: admit, run, evict, reject, decode, wait |
    | 6 `prompt` | log2(tokens) / 20 |
    | 7 `done` | share of the prompt that is done |
    | 8 `rest` | time that its prompt still needs, x / (1 + x), x in mean prefills |
    | 9 `step` | time of its next step, likewise; for decode that of all its tokens |
    | 10 `left` | time until the limit on its first token, x / (1 + abs(x)), x in mean prefills; below 0 when it has passed |
    | 11 `value` | what it would be worth if its prompt ran from now on and was not interrupted, -1 to 1 |
    | 12 `quality` | score of its answer over twice that of full attention |
    | 13 `shortfall` | what that lacks |
    | 14 `peak` | the most it will hold at once, of the memory that the weights leave, at most 1 |
    | 15 `kept` | what it will hold while it decodes, likewise |
    | 16 `room` | memory that would be left during its next step, likewise; below 0 it would be lost |
    | 17 `spare` | memory that would be left at its peak if all others held what they are going to keep, likewise |

    Rows of rejections show the request in the paper's mode.

    ## Rewards
    When a request is done: 1, less how late its first token was over its limit (or how much longer a later token took on average
    than `tpot_limit_s`, over that, if this is more), from -1 on; less `quality_weight` times the quality that its answer lacks. At
    each step `memory_weight` times the memory that requests held, GiB s. `lost_cost` for a request that is lost, `reject_cost` for
    one that is rejected, and for each that is open when the episode is cut. The return is the value of all requests less these.

    ## Starting State
    Time 0, at which the first request arrives. Arrivals (Poisson), prompts, outputs and classes are drawn from the seed, whatever
    is decided.

    ## Episode End
    Termination when all `requests` are done, rejected or lost. Truncation after `most_lost` lost requests, or after `horizon_s`.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/SegmentedPrefill-v0", scenario="paper", load=0.9)
    envs = gymnasium.make_vec("llmgym/SegmentedPrefill-v0", num_envs=256, decide="mode")
    ```

    Args:
        scenario: `paper`, `real`, `stress`, `untrained`, `small`, or a `Scenario` (see
            `llmgym.envs.segmented.scenarios`). Each of its settings, which `llmgym settings llmgym/SegmentedPrefill-v0` tells, can
            be given as an argument of its own.
        decide: what is decided, `all`, or `mode` alone with a server that works first in, first out.
        invalid_action: what a masked action is, `penalize` or `raise`.
        invalid_cost: what a masked action costs.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, model, device, mode, workload or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = SegmentedPrefill


SegmentedPrefillVectorEnv = vector_env(SegmentedPrefillEnv)
