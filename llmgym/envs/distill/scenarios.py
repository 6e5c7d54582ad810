"""Scenarios of DistillProgramme: named settings of students, deadlines, floors, artefacts, power, carbon and budget."""

from dataclasses import dataclass
from typing import Any

from llmgym.core.settings import count, flag, given, numbers, option, quantity, some_of
from llmgym.envs.distill.grid import GRIDS
from llmgym.envs.distill.power import PAPER
from llmgym.envs.distill.published import LIMIT_W, LOGITS_GB, PIPELINES, SIZES
from llmgym.errors import InvalidArgument
from llmgym.profiles import check_kernels

MOST_GPUS = 4
MOST_STUDENTS = 128
"""Students that an episode can have at most; a scenario whose arrivals could pass it is refused."""
LEAST_CAP_W = 150.0
"""Caps below this are refused: a measured H100 at rest takes 133 W."""


def _check_power(name: str, value: Any) -> None:
    if not (isinstance(value, str) and value == PAPER):
        check_kernels(name, value)


@dataclass(frozen=True)
class Scenario:
    """Settings of DistillProgramme; each of them is also an argument of the environment."""

    about: str
    known: int = count(6, "Students that are ordered when the programme begins.", high=64, unit="students")
    per_day: float = quantity(
        1.4, "Students that are ordered later, on average a day.", zero=True, high=20.0, unit="1/day"
    )
    orders_days: float = quantity(
        10.0, "Students are ordered for so many days.", zero=True, high=60.0, unit="days"
    )
    horizon_days: float = quantity(
        14.0, "The programme ends after so many days at the latest.", high=60.0, unit="days"
    )
    gpus: int = count(2, "H100s, each of which runs one stage at a time.", high=MOST_GPUS, unit="GPUs")
    sizes: tuple[float, ...] = numbers(
        (1.0, 1.0, 1.0),
        "Weights of the sizes 1B, 7B and 13B among the students.",
        size=len(SIZES),
        zero=True,
        some=True,
    )
    datasets: int = count(3, "How many of tulu, math and code there are, in this order.", high=3)
    concentration: float = quantity(
        1.0,
        "How alike the datasets are in demand: the concentration of the Dirichlet law that their shares are drawn from.",
        low=0.1,
        high=1e6,
    )
    slack_days: tuple[float, float] = numbers(
        (1.0, 6.0),
        "Least and most time between order and deadline beyond that of fine-tuning, days; uniform.",
        size=2,
        zero=True,
        high=60.0,
        order="pair",
        unit="days",
    )
    floor_gap: tuple[float, float] = numbers(
        (0.03, 0.25),
        "Least and most that the floor of quality lies below the mean quality of fine-tuning; uniform.",
        size=2,
        low=-1.0,
        high=1.0,
        order="pair",
    )
    floor: float | None = quantity(
        None, "One floor of quality for all students, instead of `floor_gap`.", zero=True, high=1.5
    )
    value: float = quantity(10.0, "Value of a 1B student; 7B and 13B are worth 2 and 3 times as much.")
    value_spread: float = quantity(0.5, "Values differ by up to this share; uniform.", zero=True, high=1.0)
    noise: float = quantity(
        0.05,
        "Standard deviation of the logarithm of a stage's time and energy.",
        zero=True,
        high=0.5,
    )
    quality_noise: float = quantity(0.01, "Standard deviation of quality.", zero=True, high=0.2)
    budget_kwh: float = quantity(280.0, "Energy budget of the programme, kWh.", unit="kWh")
    hard: bool = flag(
        False, "The programme ends when the budget is used up; otherwise what is over it costs."
    )
    energy_weight: float = quantity(0.1, "Price of a kWh.", zero=True, unit="1/kWh")
    carbon_weight: float = quantity(0.0, "Price of a kg CO2e.", zero=True, unit="1/kg")
    over_weight: float = quantity(
        5.0, "Price of a kWh over the budget, beside its own.", zero=True, unit="1/kWh"
    )
    pue: float = quantity(
        1.2, "Energy of the site over that of the GPUs; it counts for emissions.", low=1.0, high=3.0
    )
    grid: str = option("california", "Whose carbon intensity by hour.", GRIDS)
    flat_g: float = quantity(300.0, "Intensity of the flat grid, g/kWh.", zero=True, high=450.0, unit="g/kWh")
    month: int | None = count(None, "Month of the programme; None: drawn.", high=12)
    power: str = given(
        PAPER,
        "Power of the stages: the paper's logs, or a kernel set with measured power; see `llmgym.envs.distill.power`.",
        check=_check_power,
        allowed="`paper`, or a kernel set such as `h100/kernels`",
    )
    idle_w: float = quantity(0.0, "Power of a GPU that does nothing, watts.", zero=True, high=200.0, unit="W")
    caps: tuple[float, ...] = numbers(
        (400.0,),
        f"Power caps that a stage can run under, beside none ({LIMIT_W:g} W), watts.",
        size=(0, 4),
        low=LEAST_CAP_W,
        high=LIMIT_W,
        order="falling",
        unit="W",
    )
    pipelines: tuple[str, ...] = some_of(
        ("sft", "kd", "synthetic"), "Pipelines of a student.", PIPELINES, first=PIPELINES[0]
    )
    split: bool = flag(
        True, "Synthetic text costs what its dataset costs by measured joules a token; otherwise the mean."
    )
    epochs: float = quantity(
        1.0, "Passes in which a teacher that runs beside its student is asked.", high=10.0
    )
    storage_gb: float | None = quantity(
        None, "Room for artefacts; the oldest makes room for a new one, GB.", low=LOGITS_GB, unit="GB"
    )
    teacher_per_day: float = quantity(
        0.0,
        "New versions of the teacher a day, each of which makes all artefacts worthless.",
        zero=True,
        high=1.0,
        unit="1/day",
    )
    slots: int = count(6, "Waiting students that can be started, those of the earliest deadlines.", high=16)
    wait_h: float = quantity(
        3.0, "To wait while students wait takes at most so long, hours.", low=0.25, high=24.0, unit="h"
    )

    def check_together(self) -> None:
        """Raise `InvalidArgument` where a cap is none."""
        if self.caps and self.caps[0] >= LIMIT_W:
            raise InvalidArgument(f"caps={self.caps!r}: expected caps below {LIMIT_W:g} W")


SCENARIOS: dict[str, Scenario] = {
    "paper": Scenario(
        "ten students of one dataset, all known, without floors; caps from none to 300 W",
        known=10,
        per_day=0.0,
        orders_days=0.0,
        horizon_days=30.0,
        gpus=1,
        datasets=1,
        slack_days=(10.0, 20.0),
        floor=0.0,
        value_spread=0.0,
        budget_kwh=200.0,
        caps=(600.0, 500.0, 400.0, 300.0),
        split=False,
        slots=10,
    ),
    "real": Scenario(
        "four GPUs for a month with measured powers, idling included; new teachers; carbon has a price",
        known=8,
        per_day=2.4,
        orders_days=24.0,
        horizon_days=30.0,
        gpus=4,
        budget_kwh=1000.0,
        carbon_weight=0.2,
        power="h100/kernels",
        idle_w=133.0,
        teacher_per_day=0.03,
        slots=8,
    ),
    "carbon": Scenario(
        "few students with long deadlines, and what counts is carbon by the hour",
        known=4,
        per_day=0.6,
        slack_days=(4.0, 8.0),
        energy_weight=0.0,
        carbon_weight=1.0,
        budget_kwh=400.0,
        wait_h=1.0,
    ),
    "stress": Scenario(
        "more than the GPUs can do, a hard budget, every pipeline, little storage, new teachers",
        known=10,
        per_day=3.0,
        slack_days=(0.5, 4.0),
        floor_gap=(0.0, 0.3),
        noise=0.2,
        quality_noise=0.03,
        budget_kwh=300.0,
        hard=True,
        carbon_weight=0.1,
        caps=(600.0, 450.0, 300.0),
        pipelines=PIPELINES,
        storage_gb=20.0,
        teacher_per_day=0.1,
        idle_w=35.0,
    ),
    "small": Scenario(
        "two GPUs for two weeks, 20 students of three datasets whose demand is not known beforehand",
    ),
}
