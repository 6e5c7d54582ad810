"""DistillProgramme: which students are distilled, from what, when and under which power cap, within an energy budget.

Lambert and Luccioni, "Towards Resource-Efficient LLMs" (ICML 2026, arXiv 2605.13981), account for the energy of distillation end to
end: a teacher's artefact costs more than the students that it is made for save, unless enough of them share it. Here students are
ordered as time goes on, with deadlines and floors of quality, and somebody has to decide before it is known how many will share.
"""

import math
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray
from scipy.stats import truncnorm

from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.rng import normal, substream
from llmgym.core.settings import settled
from llmgym.envs.distill.grid import DAY_SPREAD, draw_days, monthly
from llmgym.envs.distill.kernels import KERNELS
from llmgym.envs.distill.power import capped, powers, training_kwh
from llmgym.envs.distill.published import (
    COMPUTE_BOUND,
    DATA_KWH,
    DATA_W,
    EVAL_KWH,
    HALF_LOSS,
    KD,
    LIMIT_W,
    LOGITS_BOUND,
    LOGITS_GB,
    LOGITS_KWH,
    PIPELINES,
    QUALITY,
    SFT,
    SYNTHETIC,
    TEXT_BOUND,
    TEXT_GB,
    TEXT_J_PER_TOKEN,
    TEXT_KWH,
)
from llmgym.envs.distill.scenarios import MOST_STUDENTS, SCENARIOS, Scenario
from llmgym.envs.distill.state import (
    ARTEFACTS,
    DONE,
    EVALUATE,
    FEATURES,
    FORECAST_H,
    MAIN,
    MOST_MADE,
    PREPARE,
    ROW,
    TRAINS,
    Artefact,
    Config,
    Episode,
    Job,
    Metrics,
    Observation,
    Params,
    State,
    Student,
)
from llmgym.envs.distill.world import DAYS, LUCKS, STRETCHES, next_change_h
from llmgym.errors import InvalidArgument

W_PER_KW = 1000.0


def capacity(scenario: Scenario) -> int:
    """Students that an episode can have: those known, and six standard deviations more than are expected.

    Raises:
        InvalidArgument: more than `MOST_STUDENTS`.
    """
    mean = scenario.per_day * scenario.orders_days
    most = scenario.known + (math.ceil(mean + 6.0 * math.sqrt(mean) + 6.0) if mean > 0.0 else 0)
    if most > MOST_STUDENTS:
        raise InvalidArgument(
            f"per_day={scenario.per_day!r}: with known={scenario.known} and orders_days={scenario.orders_days!r} there could be "
            f"{most} students; at most {MOST_STUDENTS} are simulated"
        )
    return most


def artefact_kwh(split: bool) -> NDArray[np.float64]:
    """Energy of each artefact, logits and text of tulu, math and code, kWh, float64 [6].

    Args:
        split: text costs in proportion to the measured joules a token of its dataset; else the same everywhere.
    """
    share = np.array(TEXT_J_PER_TOKEN) / np.mean(TEXT_J_PER_TOKEN) if split else np.ones(3)
    return np.array([[LOGITS_KWH, TEXT_KWH * x] for x in share]).ravel()


def may_distil(scenario: Scenario, quality: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chance that the floor of a student allows it to be distilled from logits and from text, by size, float64 [3, 2].

    Args:
        scenario: with the floor, or the law of its gap below fine-tuning.
        quality: expected, by pipeline and size.
    """
    low, high = scenario.floor_gap
    out = np.zeros((3, 2))
    for kind, pipeline in enumerate((KD, SYNTHETIC)):
        for size in range(3):
            if scenario.floor is not None:
                out[size, kind] = quality[pipeline, size] >= scenario.floor
                continue
            needs = quality[SFT, size] - quality[pipeline, size]
            out[size, kind] = (
                min(max((high - needs) / (high - low), 0.0), 1.0) if high > low else float(low >= needs)
            )
    return out


class DistillProgramme(Simulation):
    """The simulation behind `llmgym/DistillProgramme-v0`; `DistillProgrammeEnv` lists the arguments.

    Attributes:
        capacity: students that an episode can have.
    """

    kernels = KERNELS
    metrics = Metrics
    view = "llmgym.envs.distill.view"
    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: it is what the episode was drawn from",
        "lane.students": "at the end of the episode",
        "lane.checksum": "at the end of the episode",
        "lane.change_h": "when the teacher changes",
        "student.size": "when the student is ordered",
        "student.dataset": "when the student is ordered",
        "student.arrival_h": "when the student is ordered",
        "student.deadline_h": "when the student is ordered",
        "student.floor": "when the student is ordered",
        "student.value": "when the student is ordered",
        "student.stretch": "when the student's training ends",
        "student.luck": "when the student is done",
        "job.end_h": "when the stage ends",
        "day": "when the day begins",
    }
    shown = frozenset({"lane.month", "lane.offered", "lane.seen", "slot", "running_g"})

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        **settings: Any,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "DistillProgramme", ("about",))
        if chosen.orders_days > chosen.horizon_days:
            raise InvalidArgument(
                f"orders_days={chosen.orders_days!r}: expected at most horizon_days={chosen.horizon_days!r}"
            )
        self.scenario = chosen
        self.capacity = capacity(chosen)
        self.params = self._params(chosen)
        rows = (chosen.slots * len(chosen.pipelines) + ARTEFACTS) * (1 + len(chosen.caps)) + 1
        self.action_space = Discrete(rows)
        unit = f"{rows} rows of {FEATURES}"
        self.layout = Layout(
            [Field("candidate", rows * FEATURES, -1.0, 1.0, unit, ROW, rows, (0,))], Observation
        )

    def _params(self, chosen: Scenario) -> Params:
        """What all lanes share, from the settings."""
        power = powers(chosen.power, chosen.epochs)
        caps = np.array([LIMIT_W, *chosen.caps])
        kwh, n = training_kwh(chosen.epochs), len(caps)
        train_w, train_h = np.zeros((5, 3, n)), np.zeros((5, 3, n))
        make_w, make_h = np.zeros((ARTEFACTS, n)), np.zeros((ARTEFACTS, n))
        evaluate_w, evaluate_h = np.zeros(n), np.zeros((3, n))
        made = artefact_kwh(chosen.split)
        for c, cap in enumerate(caps.tolist()):
            for p in range(5):
                for s in range(3):
                    watts = float(power.student[p, s])
                    train_w[p, s, c], train_h[p, s, c] = capped(
                        watts, W_PER_KW * kwh[p, s] / watts, COMPUTE_BOUND[p], cap, power.static
                    )
            for a in range(ARTEFACTS):
                watts, bound = (power.text, TEXT_BOUND) if a % 2 else (power.logits, LOGITS_BOUND)
                make_w[a, c], make_h[a, c] = capped(
                    watts, W_PER_KW * made[a] / watts, bound, cap, power.static
                )
            for s in range(3):
                hours = W_PER_KW * EVAL_KWH[s] / power.text
                evaluate_w[c], evaluate_h[s, c] = capped(power.text, hours, TEXT_BOUND, cap, power.static)
        sft, kd, synthetic = (np.array(row) for row in QUALITY)
        quality = np.array([sft, kd, synthetic, sft - HALF_LOSS, kd])
        size_share = np.array(chosen.sizes) / sum(chosen.sizes)
        config = Config.pack(
            chosen,
            capacity=self.capacity,
            window=chosen.slots,
            month=-1 if chosen.month is None else chosen.month - 1,
            orders_h=24.0 * chosen.orders_days,
            horizon_h=24.0 * chosen.horizon_days,
            slack_low_h=24.0 * chosen.slack_days[0],
            slack_high_h=24.0 * chosen.slack_days[1],
            gap_low=chosen.floor_gap[0],
            gap_high=chosen.floor_gap[1],
            floor=-1.0 if chosen.floor is None else chosen.floor,
            day_spread=0.0 if chosen.grid == "flat" else DAY_SPREAD,
            prepare_h=W_PER_KW * DATA_KWH / DATA_W,
            prepare_w=DATA_W,
            storage_gb=math.inf if chosen.storage_gb is None else chosen.storage_gb,
            invalid_cost=self.invalid_cost,
        )
        return Params(
            config,
            np.array([PIPELINES.index(name) for name in chosen.pipelines], np.int64),
            caps,
            train_h,
            train_w,
            make_h,
            make_w,
            evaluate_h,
            evaluate_w,
            quality,
            size_share,
            may_distil(chosen, quality),
            monthly(chosen.grid, chosen.flat_g),
            np.tile([LOGITS_GB, TEXT_GB], 3),
        )

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        return State(
            Episode.zeros(lanes),
            Student.zeros(lanes, self.capacity),
            Artefact.zeros(lanes, ARTEFACTS),
            Job.zeros(lanes, self.capacity + MOST_MADE),
            np.zeros((lanes, self.scenario.gpus), np.int64),
            np.zeros((lanes, self.scenario.slots), np.int64),
            np.zeros((lanes, math.ceil(self.scenario.horizon_days) + 1)),
            np.zeros((lanes, FORECAST_H), np.float32),
        )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Draw anew who is still to be ordered, the luck of whom is not done, true ends, days to come and the teacher's next
        version.

        What runs has not ended by now in the other world either: its true time is drawn under that condition. The stage before
        training and that after it take what they are expected to.

        Args:
            state: arrays of all lanes.
            lane: the lane that gets another future.
            key: seeds the other world, 0 to 2**63 - 1.
        """
        other = self.world(key)
        other_key = other.lane[0]["key"]
        episode, students = state.lane[lane], state.student[lane]
        clock_h, n, noise = float(episode["clock_h"]), int(episode["arrived"]), self.scenario.noise
        for i in range(n):
            if students[i]["status"] != DONE:
                students[i]["luck"] = normal(substream(other_key, LUCKS), i)
            if students[i]["status"] < DONE and students[i]["pipeline"] < 0:
                students[i]["stretch"] = math.exp(noise * normal(substream(other_key, STRETCHES), i))
        rng = np.random.default_rng(key)
        for number in state.running[lane]:
            job = state.job[lane, number]
            if number < 0 or job["end_h"][MAIN] <= clock_h:
                continue
            begin_h, main_h = job["end_h"][PREPARE], job["main_h"]
            evaluate_h = job["end_h"][EVALUATE] - job["end_h"][MAIN]
            stretch = self._stretch(clock_h - begin_h, float(main_h), rng)
            if stretch is None:
                continue
            job["end_h"][MAIN] = begin_h + stretch * main_h
            job["end_h"][EVALUATE] = job["end_h"][MAIN] + evaluate_h
            if job["kind"] == TRAINS:
                students[job["which"]]["stretch"] = stretch
        coming = other.student[0][: other.lane[0]["students"]]
        coming = coming[coming["arrival_h"] > clock_h][: self.capacity - n]
        students[n:] = Student.blank[0]
        students[n : n + len(coming)] = coming
        episode["students"] = n + len(coming)
        drawn = students[: n + len(coming)]
        episode["checksum"] = sum(
            float(drawn[name].sum()) for name in ("arrival_h", "deadline_h", "value", "stretch")
        )
        today = int(min(clock_h, 24.0 * self.scenario.horizon_days - 1e-9) // 24.0)
        day = state.day[lane]
        draw_days(substream(other_key, DAYS), self.params.config["day_spread"][0], today + 1, day[today], day)
        episode["key"] = other_key
        episode["change_h"] = next_change_h(
            self.params.config[0], other_key, int(episode["changes"]), clock_h
        )

    def _stretch(self, passed_h: float, main_h: float, rng: np.random.Generator) -> float | None:
        """Another true over expected time of a stage that has not ended after so many hours; None where it cannot differ."""
        noise = self.scenario.noise
        if noise == 0.0:
            return None
        least = math.log(max(passed_h, 1e-9) / main_h) / noise
        stretch = math.exp(noise * float(truncnorm.rvs(least, math.inf, random_state=rng)))
        return stretch if stretch * main_h > passed_h + 1e-9 else None

    def expected_return(self, metrics: dict[str, float]) -> float:
        """Value less the prices of energy, emissions and overdraft, less penalties."""
        return metrics["net_value"] - metrics["penalty"]


class DistillProgrammeEnv(LaneEnv):
    """A programme of student models on a few GPUs: fine-tuned or distilled, with shared artefacts of one teacher.

    ## Description
    Students (1B, 7B or 13B, on one of three datasets) are ordered with a deadline, a floor of quality and a value; some are known
    at the beginning, others come at random. Each is trained by one pipeline: supervised fine-tuning (SFT); distillation from cached
    logits of the teacher (KD); training on synthetic text of the teacher; if the scenario has them also SFT on half of the data,
    and KD with the teacher running beside the student. Logits and text are artefacts: making one takes a GPU for a day and 10 to
    13 kWh, and every later student of the same dataset can use it. A distilled student needs less energy than a fine-tuned one,
    KD takes more time, and large students lose quality. Every stage may run under a power cap, which saves energy and takes time.

    A stage takes its expected time and energy times a lognormal factor. Data of a dataset is prepared once, by the first job that
    needs it. A student that was not started before its deadline is dropped. Emissions follow the carbon intensity of the grid
    hour by hour. Energies, powers and qualities are the paper's or of its logs; what is assumed is named in
    `llmgym.envs.distill.published` and `llmgym.envs.distill.power`.

    ## Action Space
    `Discrete(n)`: a row of the candidates. First the waiting students of the earliest deadlines, slot by slot, with each pipeline
    and under each cap (caps vary fastest, the first is none); then the artefacts (logits and text of tulu, of math, of code)
    under each cap; last, waiting. Masked: an empty slot, a cached pipeline without its artefact, an artefact that is being made
    (or of a dataset that is not there, or beyond 64), a cap that changes nothing. Waiting goes on to the next event (a job ends,
    a student is ordered, the teacher changes), and while students wait at most `wait_h`. A masked action waits, is counted in
    `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes it an error. While all GPUs are busy nothing is
    decided.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["candidate"]` is the slice of a field, `layout.markdown()` prints the table. The
    field `candidate` has one row of 17 numbers for each action, in the order of the actions. Shown times and energies are the
    expected ones; true ones, students to come and the days of the grid to come are not shown.

    ## Rewards
    The value of each student that ends by its deadline with a quality at or above its floor, less `energy_weight` times the energy
    (kWh), `carbon_weight` times the emissions (kg CO2e, PUE included) and `over_weight` times the energy beyond the budget, each
    as it is used. The return is `net_value` less penalties.

    ## Starting State
    Midnight of the first day, all GPUs free, no artefact. Students, their demand by dataset, true times and qualities, the month
    and the days of the grid are drawn from the seed, whatever is decided.

    ## Episode End
    Termination when every student is done or dropped and none will be ordered any more, at the horizon, or with `hard=True` when
    the budget is used up.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/DistillProgramme-v0", scenario="paper", budget_kwh=150.0)
    envs = gymnasium.make_vec("llmgym/DistillProgramme-v0", num_envs=256, scenario="small")
    ```

    Args:
        scenario: `paper`, `real`, `carbon`, `stress`, `small`, or a `Scenario` (see `llmgym.envs.distill.scenarios`). Each
            setting can be given as an argument of its own: `known`, `per_day`, `orders_days`, `horizon_days`, `gpus`, `sizes`,
            `datasets`, `concentration`, `slack_days`, `floor_gap`, `floor`, `value`, `value_spread`, `noise`, `quality_noise`,
            `budget_kwh`, `hard`, `energy_weight`, `carbon_weight`, `over_weight`, `pue`, `grid`, `flat_g`, `month`, `power`,
            `idle_w`, `caps`, `pipelines`, `split`, `epochs`, `storage_gb`, `teacher_per_day`, `slots`, `wait_h`.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, grid, pipeline, kernel set or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = DistillProgramme


DistillProgrammeVectorEnv = vector_env(DistillProgrammeEnv)
