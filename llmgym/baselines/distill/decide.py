"""The decision of `llmgym plan distill`: which artefacts are made, which pipeline each student gets, what runs when, under which
cap.

Energy decides as in Lambert and Luccioni, ICML 2026, arXiv 2605.13981: all sets of artefacts are tried, and with each every student
gets the cheapest pipeline that meets its floor. Deadlines decide first: the jobs are put on the GPUs one after the other, the most
urgent one first, and students that would be late get a faster pipeline where that helps. Then caps are lowered where all stay in
time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from llmgym.baselines.distill.programme_file import Order, Programme
from llmgym.envs.distill.env import DistillProgramme
from llmgym.envs.distill.published import KD, SFT, SYNTHETIC
from llmgym.envs.distill.state import MAKES, TRAINS

PLANNED = (SFT, KD, SYNTHETIC)
"""Pipelines that a plan chooses among; the others have no published energy."""

FINALISTS = 6
"""Sets of artefacts whose plans are then made faster where students are late, and run under lower caps."""


@dataclass(frozen=True)
class Planned:
    """A job of the plan.

    Attributes:
        kind: trains a student or makes an artefact.
        which: index of the order, or number of the artefact.
        pipeline: of a student.
        cap: index of its cap; 0: none.
        begin_h: when it begins, hours.
        end_h: when it ends, hours.
        energy_kwh: with preparing data where it is the first, and evaluation, kWh.
    """

    kind: int
    which: int
    pipeline: int
    cap: int = 0
    begin_h: float = 0.0
    end_h: float = 0.0
    energy_kwh: float = 0.0


@dataclass(frozen=True)
class Decision:
    """A plan.

    Attributes:
        jobs: what runs, in the order in which it begins.
        late: indices of the orders that end after their deadline.
        energy_kwh: in total, kWh.
        impossible: indices of the orders whose floor no pipeline meets; they are left out.
    """

    jobs: tuple[Planned, ...]
    late: tuple[int, ...]
    energy_kwh: float
    impossible: tuple[int, ...] = ()

    @property
    def made(self) -> tuple[int, ...]:
        """Numbers of the artefacts that are made."""
        return tuple(sorted(job.which for job in self.jobs if job.kind == MAKES))

    def training(self, order: int) -> Planned | None:
        """The job of an order; None for one that is left out."""
        return next((job for job in self.jobs if job.kind == TRAINS and job.which == order), None)


class Planner:
    """Plans one programme.

    Args:
        programme: the programme.

    Attributes:
        costs: expected times, powers and qualities.
    """

    def __init__(self, programme: Programme) -> None:
        self.programme = programme
        made_with = DistillProgramme(caps=programme.caps, power=programme.power, split=programme.split)
        self.costs = made_with.params
        self.config = made_with.params.config[0]

    def quality(self, pipeline: int, order: Order) -> float:
        """Expected quality of an order by a pipeline."""
        return float(self.costs.quality[pipeline, order.size])

    def artefact(self, pipeline: int, order: Order) -> int:
        """The artefact that a pipeline needs for an order, -1: none."""
        return -1 if pipeline == SFT else 2 * order.dataset + (pipeline == SYNTHETIC)

    def training(self, pipeline: int, order: Order, cap: int = 0) -> tuple[float, float]:
        """Time (h) and energy (kWh) of an order's job, without preparing data.

        Args:
            pipeline: `SFT`, `KD` or `SYNTHETIC`.
            order: the order.
            cap: index of the power cap; 0: none.

        Returns:
            Hours and kWh.
        """
        train_h = float(self.costs.train_h[pipeline, order.size, cap])
        evaluate_h = float(self.costs.evaluate_h[order.size, cap])
        watt_h = train_h * float(self.costs.train_w[pipeline, order.size, cap])
        watt_h += evaluate_h * float(self.costs.evaluate_w[cap])
        return train_h + evaluate_h, watt_h / 1000.0

    def making(self, artefact: int, cap: int = 0) -> tuple[float, float]:
        """Time (h) and energy (kWh) of making an artefact, without preparing data."""
        hours = float(self.costs.make_h[artefact, cap])
        return hours, hours * float(self.costs.make_w[artefact, cap]) / 1000.0

    def _cost(self, job: Planned) -> tuple[float, float]:
        if job.kind == MAKES:
            return self.making(job.which, job.cap)
        return self.training(job.pipeline, self.programme.orders[job.which], job.cap)

    def _dataset(self, job: Planned) -> int:
        return job.which // 2 if job.kind == MAKES else self.programme.orders[job.which].dataset

    def scheduled(self, jobs: Sequence[Planned]) -> Decision:
        """Jobs put on the GPUs: whenever one is free, the most urgent job that can begin, by the latest time it has to.

        Args:
            jobs: artefacts and students; those from artefacts begin when these are made.
        """
        orders = self.programme.orders
        cost = [self._cost(job) for job in jobs]
        latest = [
            orders[job.which].deadline_h - hours if job.kind == TRAINS else math.inf
            for job, (hours, _) in zip(jobs, cost, strict=True)
        ]
        makers = {job.which: n for n, job in enumerate(jobs) if job.kind == MAKES}
        for n, job in enumerate(jobs):
            need = self.artefact(job.pipeline, orders[job.which]) if job.kind == TRAINS else -1
            if need in makers:
                maker = makers[need]
                latest[maker] = min(latest[maker], latest[n] - cost[maker][0])
        free = [0.0] * self.programme.gpus
        ready, prepared, left = {a: 0.0 for a in self.programme.there}, set(), set(range(len(jobs)))
        done: list[Planned] = []
        while left:
            gpu = min(range(len(free)), key=free.__getitem__)

            def begins(n: int, now: float = free[gpu]) -> float:
                job = jobs[n]
                need = self.artefact(job.pipeline, orders[job.which]) if job.kind == TRAINS else -1
                return max(now, ready.get(need, math.inf)) if need >= 0 else now

            # artefacts before students of the same urgency, so that a tie does not hold up who needs them
            n = min(left, key=lambda n: (begins(n), latest[n], jobs[n].kind == TRAINS, n))
            begin_h, (hours, kwh) = begins(n), cost[n]
            if self._dataset(jobs[n]) not in prepared:
                prepared.add(self._dataset(jobs[n]))
                hours += float(self.config["prepare_h"])
                kwh += float(self.config["prepare_h"] * self.config["prepare_w"]) / 1000.0
            free[gpu] = begin_h + hours
            if jobs[n].kind == MAKES:
                ready[jobs[n].which] = free[gpu]
            done.append(replace(jobs[n], begin_h=begin_h, end_h=free[gpu], energy_kwh=kwh))
            left.remove(n)
        late = tuple(
            sorted(
                job.which
                for job in done
                if job.kind == TRAINS and job.end_h > orders[job.which].deadline_h + 1e-9
            )
        )
        return Decision(tuple(done), late, math.fsum(job.energy_kwh for job in done))

    def rank(self, decision: Decision) -> tuple[float, float, float, int]:
        """What makes a plan better, the smallest first: late students, energy over the budget, energy, artefacts."""
        over = max(decision.energy_kwh - self.programme.budget_kwh, 0.0)
        kwh = round(decision.energy_kwh, 6)
        return len(decision.late), round(over, 6), kwh, len(decision.made)

    def possible(self, order: Order) -> list[int]:
        """The pipelines whose expected quality meets an order's floor."""
        return [p for p in PLANNED if self.quality(p, order) >= order.floor]

    def _ways(self, opened: Sequence[int], order: Order) -> list[int]:
        """The pipelines that an order can have with these artefacts, the cheapest first."""
        ways = [p for p in self.possible(order) if self.artefact(p, order) in (-1, *opened)]
        return sorted(ways, key=lambda p: self.training(p, order)[1])

    def _planned(self, chosen: Mapping[int, int]) -> Decision:
        """The plan with these pipelines, by order, and the artefacts that they need."""
        orders = self.programme.orders
        used = {self.artefact(p, orders[n]) for n, p in chosen.items()} - {-1, *self.programme.there}
        jobs = [Planned(MAKES, a, 0) for a in sorted(used)]
        return self.scheduled([*jobs, *(Planned(TRAINS, n, p) for n, p in sorted(chosen.items()))])

    def _hurried(self, opened: Sequence[int], chosen: Mapping[int, int]) -> Decision:
        """The plan with other pipelines for who would be late, where that helps."""
        best, chosen = self._planned(chosen), dict(chosen)
        for n in best.late:
            for p in self._ways(opened, self.programme.orders[n])[1:]:
                other = self._planned({**chosen, n: p})
                if self.rank(other) < self.rank(best):
                    best, chosen = other, {**chosen, n: p}
        return best

    def _capped(self, decision: Decision) -> Decision:
        """The plan with the caps lowered, job by job, the largest saving first, where no more students are late."""
        order = sorted(range(len(decision.jobs)), key=lambda n: -decision.jobs[n].energy_kwh)
        plain = [replace(job, begin_h=0.0, end_h=0.0, energy_kwh=0.0) for job in decision.jobs]
        for n in order if self.programme.caps else []:
            for cap in range(len(self.programme.caps), 0, -1):
                trial = [replace(job, cap=cap) if k == n else job for k, job in enumerate(plain)]
                other = self.scheduled(trial)
                if self.rank(other) < self.rank(decision):
                    decision, plain = other, trial
                    break
        return decision

    def decide(self) -> Decision:
        """The best plan found."""
        orders = self.programme.orders
        numbers = [n for n in range(len(orders)) if self.possible(orders[n])]
        useful = sorted(
            {self.artefact(p, orders[n]) for n in numbers for p in self.possible(orders[n])} - {-1}
        )
        sets: dict[tuple[tuple[int, int], ...], Sequence[int]] = {}
        for size in range(len(useful) + 1):
            for opened in combinations(useful, size):
                ways = {n: self._ways(opened, orders[n]) for n in numbers}
                if set(self.programme.there) & set(useful) <= set(opened) and all(ways.values()):
                    sets.setdefault(tuple((n, found[0]) for n, found in ways.items()), opened)
        ranked = sorted(sets, key=lambda chosen: self.rank(self._planned(dict(chosen))))
        # caps lessen what an artefact saves, so the best plan without them need not be the best one with them
        finalists = [self._hurried(sets[chosen], dict(chosen)) for chosen in ranked[:FINALISTS]]
        best = min((self._capped(plan) for plan in finalists), key=self.rank)
        left_out = tuple(n for n in range(len(orders)) if n not in numbers)
        jobs = tuple(sorted(best.jobs, key=lambda job: (job.begin_h, job.end_h)))
        return replace(best, jobs=jobs, impossible=left_out)

    def all_sft_kwh(self) -> float:
        """Energy if every student that can be had were fine-tuned without a cap, kWh."""
        orders = self.programme.orders
        numbers = [n for n in range(len(orders)) if self.possible(orders[n])]
        prepare = float(self.config["prepare_h"] * self.config["prepare_w"]) / 1000.0
        datasets = {orders[n].dataset for n in numbers}
        return math.fsum(self.training(SFT, orders[n])[1] for n in numbers) + prepare * len(datasets)
