"""What DistillProgramme keeps, shows and measures, and what its compiled functions are told."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import (
    Record,
    Records,
    Records2,
    boolean,
    float64,
    int8,
    int16,
    int32,
    metric,
    shown,
    uint64,
)
from llmgym.envs.distill.scenarios import MOST_GPUS

NOT_ORDERED, WAITING, RUNNING, DONE, DROPPED = range(5)
"""What a student can be; a dropped one was not started before its deadline."""
TRAINS, MAKES = 0, 1
"""What a job does: it trains a student, or makes an artefact."""
ARTEFACTS = 6
"""Two for each dataset: artefact `2 * dataset` is its logits, the next one its synthetic text."""
MOST_MADE = 64
"""Artefacts that can be begun in an episode."""
PREPARE, MAIN, EVALUATE = range(3)
"""Stages of a job, one after the other; preparing data and evaluation may take no time."""
NEITHER, BY_LOGITS, BY_TEXT, BY_BOTH = range(4)
"""What a student may be distilled from; bits."""
FORECAST_H = 24

FEATURES = 17
(
    ALLOWED,
    STARTS,
    MAKES_IT,
    WAITS,
    DISTILS,
    SIZE,
    DATASET,
    ENERGY,
    HOURS,
    SLACK,
    MARGIN,
    VALUE,
    SAVING,
    EXPECTED,
    EMISSIONS,
    CAP,
    CAPPED,
) = range(FEATURES)
"""Columns of a candidate; `ROW` says what they are."""
ROW = (
    "allowed (bit); starts a student, makes an artefact, waits (bits); needs an artefact (bit); size of the student "
    "(1B 0, 7B 0.5, 13B 1); dataset (tulu 0, math 0.5, code 1); energy that is expected (/ 100 kWh); time that is expected "
    "(h / (h + 48)); time that would be left to the deadline (x / (|x| + 48), x in h, counted from when the artefact is there); "
    "expected quality over the floor (/ 0.3); value, of an artefact that of all who wait and may use it (v / (v + 20)); kWh saved "
    "against fine-tuning without a cap, of an artefact by all who wait and may use it, less its own (x / (|x| + 20)); the same "
    "with those who are expected to come; emissions if it began now (kg / (kg + 5)); power cap (/ 700 W); a cap that changes "
    "something (bit)"
)
ENERGY_KWH, HALF_HOURS, MARGIN_SCALE, HALF_VALUE, HALF_KWH, HALF_KG = 100.0, 48.0, 0.3, 20.0, 20.0, 5.0
"""Scales of a candidate's columns."""
FEW, HALF_DAY_H = 4.0, 24.0
"""Numbers are shown as n / (n + 4), times as h / (h + 24)."""


class Episode(Record):
    """One lane of DistillProgramme."""

    key: np.uint64 = uint64("Seeds everything that is drawn.")
    month: int = int8("Month of the programme, 0 to 11.")
    students: int = int16("Students of the whole episode.")
    arrived: int = int16("Students that are ordered so far.")
    jobs: int = int16("Jobs that were begun.")
    begun: int = int16("Artefacts that were begun.")
    version: int = int16("Version of the teacher.")
    changes: int = int16("New versions of the teacher that were drawn.")
    seen: NDArray[np.int16] = int16("Students of each dataset that are ordered so far.", shape=3)
    clock_h: float = float64("Simulated time since midnight of the first day, hours.")
    change_h: float = float64("Time of the teacher's next version, hours.")
    prepared: NDArray[np.int8] = int8("Whether the data of each dataset is prepared.", shape=3)
    energy_kwh: float = float64("Energy so far, kWh.")
    teacher_kwh: float = float64("Energy of the teacher's artefacts so far, kWh.")
    idle_kwh: float = float64("Energy of GPUs that did nothing so far, kWh.")
    busy_h: float = float64("Hours that GPUs have worked, summed over them.")
    co2_kg: float = float64("Emissions so far, kg CO2e.")
    value: float = float64("Value of the students that were done in time and above their floor.")
    offered: float = float64("Value of all students that were ordered so far.")
    met: int = int16("Students that were done in time and above their floor.")
    late: int = int16("Students that were done after their deadline.")
    below: int = int16("Students that were done in time, but below their floor.")
    done: int = int16("Students that are done.")
    dropped: int = int16("Students that were not started before their deadline.")
    distilled: int = int16("Students that were started from an artefact.")
    made: int = int16("Artefacts that were made.")
    capped: int = int16("Jobs under a cap that changes something.")
    waits: int = int32("Times that the agent waited.")
    invalid: int = int32("Masked actions.")
    quality: float = float64("Sum of the quality of all students that are done.")
    penalty: float = float64("What masked actions have cost.")
    checksum: float = float64("Sum of all that was drawn of the students.")


class Student(Record):
    """One student."""

    size: int = int8("1B, 7B, 13B.")
    dataset: int = int8("tulu, math, code.")
    status: int = int8("What it is.")
    pipeline: int = int8("Its pipeline, -1 before it starts.", blank=-1)
    arrival_h: float = float64("Time of its order, hours.")
    deadline_h: float = float64("Its deadline, hours.")
    floor: float = float64("Least quality.")
    value: float = float64("What it is worth.")
    stretch: float = float64("True time and energy of its training over the expected.")
    luck: float = float64("True quality less the expected, in standard deviations.")
    quality: float = float64("Its quality; 0 before it is done.")
    end_h: float = float64("When it was done, hours; -1 before.", blank=-1.0)


class Artefact(Record):
    """Logits or synthetic text of one dataset."""

    ready: bool = boolean("Whether it can be used.")
    making: bool = boolean("Whether it is being made.")
    uses: int = int16("Students that were started from it.")
    made_h: float = float64("When it was made, hours.")


class Job(Record):
    """One job: a student's training or the making of an artefact, with what comes before and after it."""

    gpu: int = int8("Its GPU.")
    kind: int = int8("Trains or makes.")
    which: int = int16("The student or artefact.")
    cap: int = int8("Index of its cap; 0: none.")
    version: int = int16("Version of the teacher when it began.")
    begin_h: float = float64("When it began, hours.")
    end_h: NDArray[np.float64] = float64("When its stages end, hours.", shape=3)
    main_h: float = float64("Expected time of its main stage, hours.")
    expected_h: float = float64("When it was expected to end, hours.")
    power_w: NDArray[np.float64] = float64("Power of its stages, watts.", shape=3)


class Config(Record):
    """Settings that the compiled functions read."""

    known: int = int32("Students that are known at the beginning.")
    capacity: int = int32("Students that an episode can have.")
    gpus: int = int32("GPUs.")
    datasets: int = int32("Datasets.")
    window: int = int32("Waiting students that can be started.")
    hard: int = int32("1: the episode ends when the budget is used up.")
    month: int = int32("Month, 0 to 11; -1: drawn.")
    per_day: float = float64("Students that are ordered a day.")
    orders_h: float = float64("Students are ordered until then, hours.")
    horizon_h: float = float64("The end, hours.")
    concentration: float = float64("Of the Dirichlet law of the datasets' shares.")
    slack_low_h: float = float64("Least time beyond that of fine-tuning, hours.")
    slack_high_h: float = float64("Most time beyond that of fine-tuning, hours.")
    gap_low: float = float64("Least gap of the floor below fine-tuning.")
    gap_high: float = float64("Most gap of the floor below fine-tuning.")
    floor: float = float64("Floor of all students; -1: by the gap.")
    value: float = float64("Value of a 1B student.")
    value_spread: float = float64("Share by which values differ.")
    noise: float = float64("Standard deviation of the logarithm of time and energy.")
    quality_noise: float = float64("Standard deviation of quality.")
    budget_kwh: float = float64("Energy budget, kWh.")
    energy_weight: float = float64("Price of a kWh.")
    carbon_weight: float = float64("Price of a kg CO2e.")
    over_weight: float = float64("Price of a kWh over the budget.")
    pue: float = float64("Energy of the site over that of the GPUs.")
    day_spread: float = float64("Standard deviation of the logarithm of the grid's days.")
    idle_w: float = float64("Power of an idle GPU, watts.")
    prepare_h: float = float64("Time of preparing a dataset, hours.")
    prepare_w: float = float64("Power of preparing a dataset, watts.")
    storage_gb: float = float64("Room for artefacts, GB.")
    teacher_per_day: float = float64("New teachers a day.")
    wait_h: float = float64("Longest wait while students wait, hours.")
    invalid_cost: float = float64("Cost of a masked action.")


class Observation(Record):
    """What DistillProgramme shows beside the candidates."""

    progress: float = shown("time that has passed", unit="of the horizon")
    orders: float = shown("time in which students will still be ordered", unit="of the horizon")
    hour: NDArray[np.float32] = shown("sine and cosine of the hour of the day", low=-1.0, size=2)
    intensity: float = shown("carbon intensity of the grid now", unit="g/kWh / 500")
    forecast: NDArray[np.float32] = shown(
        "carbon intensity that is expected, hour by hour", unit="g/kWh / 500", size=FORECAST_H
    )
    budget: float = shown("energy budget that is left, negative if it is overdrawn", unit="budget", low=-1.0)
    committed: float = shown("energy that the running jobs still need", unit="budget")
    gpus: float = shown("GPUs", unit=f"of {MOST_GPUS}")
    gpu_left: NDArray[np.float32] = shown(
        "time that the job of each GPU still needs, as expected",
        unit="h / (h + 24)",
        size=MOST_GPUS,
        name="gpu.left",
    )
    gpu_power: NDArray[np.float32] = shown(
        "power of each GPU", unit="W / 700", size=MOST_GPUS, name="gpu.power"
    )
    ready: NDArray[np.float32] = shown(
        "artefacts that can be used: logits and text of tulu, math, code",
        unit="bit",
        size=ARTEFACTS,
        name="artefact.ready",
    )
    making: NDArray[np.float32] = shown(
        "artefacts that are being made", unit="bit", size=ARTEFACTS, name="artefact.making"
    )
    ready_in: NDArray[np.float32] = shown(
        "time until an artefact could be used if it were begun now, 0 if it is ready",
        unit="h / (h + 24)",
        size=ARTEFACTS,
        name="artefact.ready_in",
    )
    age: NDArray[np.float32] = shown(
        "age of each artefact that is ready", unit="h / (h + 24)", size=ARTEFACTS, name="artefact.age"
    )
    uses: NDArray[np.float32] = shown(
        "students that were started from each", unit="n / (n + 4)", size=ARTEFACTS, name="artefact.uses"
    )
    prepared: NDArray[np.float32] = shown("datasets that are prepared", unit="bit", size=3)
    waiting: float = shown("students that wait", unit="n / (n + 4)")
    demand: NDArray[np.float32] = shown(
        "students that wait by size, dataset, and what floor and deadline let them be distilled from: neither, logits, text, both",
        unit="n / (n + 4)",
        size=36,
    )
    expected: NDArray[np.float32] = shown(
        "students that are expected to be ordered yet, by size and dataset, from the share of the datasets so far",
        unit="n / (n + 4)",
        size=9,
    )


class Metrics(Record):
    """Metrics of an episode of DistillProgramme."""

    net_value: float = metric("Value less the prices of energy, emissions and overdraft.", best="max")
    value_share: float = metric(
        "Value of the students that met deadline and floor over that of all.", best="max"
    )
    met_share: float = metric("Students that met deadline and floor, of all that were ordered.", best="max")
    energy_kwh: float = metric("Energy, kWh.", best="min")
    energy_per_met_kwh: float = metric(
        "Energy over the students that met deadline and floor, kWh; NaN where none did.", best="min"
    )
    co2_kg: float = metric("Emissions, kg CO2e.", best="min")
    co2_g_per_kwh: float = metric("Emissions over energy, PUE included, g/kWh; NaN without energy.")
    over_budget_kwh: float = metric("Energy over the budget, kWh.", best="min")
    teacher_kwh: float = metric("Energy of the teacher's artefacts, kWh.")
    idle_kwh: float = metric("Energy of idle GPUs, kWh.")
    artefacts: float = metric("Artefacts that were made.")
    reuse_mean: float = metric("Students that were distilled over artefacts made; NaN where none was made.")
    distilled_share: float = metric(
        "Students started from an artefact, of those started; NaN where none was."
    )
    capped_share: float = metric("Jobs under a cap that changes something, of all; NaN without jobs.")
    quality_mean: float = metric("Mean quality of the students that are done; NaN where none is.")
    gpu_utilization: float = metric("Share of time that GPUs work; NaN over no time.")
    value: float = metric("Value of the students that met deadline and floor.")
    students: float = metric("Students that were ordered.")
    completed: float = metric("Students that are done.")
    late: float = metric("Students that were done after their deadline.")
    below_floor: float = metric("Students that were done in time, but below their floor.")
    dropped: float = metric("Students that were not started before their deadline.")
    waits: float = metric("Times that the agent waited.")
    penalty: float = metric("What masked actions cost.")
    invalid_actions: float = metric("Masked actions.")
    energy_j: float = metric("Energy, joules.")
    duration_s: float = metric("Simulated time, seconds.")
    world_checksum: float = metric("Sum of all that was drawn of the students, whatever was decided.")


class State(NamedTuple):
    """Arrays of DistillProgramme; the first axis is the lane.

    Attributes:
        lane: the episodes, [lanes].
        student: the students in the order in which they are ordered, [lanes, capacity].
        artefact: the artefacts, [lanes, 6].
        job: all jobs in the order in which they began, [lanes, jobs].
        running: index of the job of each GPU, -1: none, int64 [lanes, gpus].
        slot: the waiting students of the earliest deadlines, -1: none, int64 [lanes, slots].
        day: logarithms of the factors of the grid's days, float64 [lanes, days].
        running_g: mean intensity that is expected of the next 1, 2, ... 24 hours, g/kWh, float32 [lanes, 24]: written and read
            while a lane is observed.
    """

    lane: Records[Episode]
    student: Records2[Student]
    artefact: Records2[Artefact]
    job: Records2[Job]
    running: NDArray[np.int64]
    slot: NDArray[np.int64]
    day: NDArray[np.float64]
    running_g: NDArray[np.float32]


class Params(NamedTuple):
    """What all lanes of DistillProgramme share.

    Attributes:
        config: the settings, [1].
        pipelines: which pipelines there are, int64 [pipelines].
        caps: power caps, the first is that of the card, W, float64 [caps].
        train_h: expected time of training by pipeline, size and cap, h, float64 [5, 3, caps].
        train_w: power of training by pipeline, size and cap, W, float64 [5, 3, caps].
        make_h: expected time of making each artefact by cap, h, float64 [6, caps].
        make_w: power of making each artefact by cap, W, float64 [6, caps].
        evaluate_h: time of evaluation by size and cap, h, float64 [3, caps].
        evaluate_w: power of evaluation by cap, W, float64 [caps].
        quality: expected quality by pipeline and size, float64 [5, 3].
        size_share: share of each size among the students, float64 [3].
        may: chance that the floor of a student to come lets it be distilled from each kind, by size, float64 [3, 2].
        intensity: carbon intensity by month and hour, g/kWh, float64 [12, 24].
        gb: size of each artefact, GB, float64 [6].
    """

    config: Records[Config]
    pipelines: NDArray[np.int64]
    caps: NDArray[np.float64]
    train_h: NDArray[np.float64]
    train_w: NDArray[np.float64]
    make_h: NDArray[np.float64]
    make_w: NDArray[np.float64]
    evaluate_h: NDArray[np.float64]
    evaluate_w: NDArray[np.float64]
    quality: NDArray[np.float64]
    size_share: NDArray[np.float64]
    may: NDArray[np.float64]
    intensity: NDArray[np.float64]
    gb: NDArray[np.float64]
