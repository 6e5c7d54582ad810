"""One client of PipeSDNav simulated by hand, in plain Python."""

from typing import Any

from llmgym.envs.pipesd.scenarios import Link


class Plain:
    """One client by hand: the same events, in plain Python, on a text that is known in advance."""

    def __init__(self, accepted: list[bool], scenario: Any, link: Link) -> None:
        self.ok, self.s, self.link = accepted, scenario, link
        self.beta = link.token_mb / (scenario.bandwidth / 8)
        self.gamma = scenario.gamma_s
        self.gamma_wait = scenario.gamma_wait_s or scenario.gamma_s
        self.t, self.head, self.free, self.output, self.energy = self.gamma, 0, 0.0, 0, 0.0
        self.block, self.sent = 1, 0
        self.awaited: dict[str, Any] | None = None
        self.jobs: list[tuple[float, float]] = []  # waiting uploads
        self.done = False

    def _send(self, count: int) -> tuple[float, float]:
        start = max(self.t, self.free)
        self.free = start + self.link.alpha_s + self.beta * count
        return start, self.free

    def _right(self, first: int, n: int) -> int:
        a = 0
        while a < n and self.ok[first + a]:
            a += 1
        return a

    def _left(self) -> int:
        left = self.s.tokens - self.output
        return left - self.awaited["n"] - 1 if self.awaited else left

    def must(self) -> bool:
        return self.block >= self.s.max_draft or self.block + 1 >= self._left()

    def _ask(self) -> None:
        _, arrival = self._send(self.block - self.sent)
        n = self.block
        a = self._right(self.head, n)
        self.energy += 1.39 + 0.435 * (n + 1)
        verdict = arrival + self.link.verify_s + self.link.verify_token_s * (n + 1) + self.s.downlink_s
        self.awaited = {"n": n, "a": a, "verdict": verdict, "guess": None, "next": None, "stopped": False}
        self.block, self.sent, self.jobs = 0, 0, []
        if self.s.proactive and self._left() > 0:
            self.awaited["next"] = self.t + self.gamma_wait

    def _verdict(self) -> None:
        waiting = self.awaited
        assert waiting is not None
        self.t = waiting["verdict"]
        full = waiting["a"] == waiting["n"]
        guess_right = full and waiting["guess"] is not None and self.ok[self.head + waiting["n"]]
        self.head += waiting["a"] + 1
        self.output += waiting["a"] + 1
        self.awaited = None
        if not guess_right:
            kept = [end for start, end in self.jobs if start < self.t]
            if self.jobs:
                self.free = kept[-1] if kept else min(start for start, _ in self.jobs)
            self.block, self.sent = 0, 0
        if self.output >= self.s.tokens:
            self.done = True
        elif guess_right and waiting["stopped"]:
            self._ask()
            self._run()
        else:
            self.t += self.gamma
            self.block += 1

    def _run(self) -> None:
        """Go on while waiting, until there is a token to decide on."""
        waiting = self.awaited
        assert waiting is not None
        while waiting["next"] is not None and waiting["next"] <= waiting["verdict"]:
            self.t = waiting["next"]
            if waiting["guess"] is None:
                waiting["guess"] = True
                waiting["next"] = self.t + self.gamma_wait
            else:
                waiting["next"] = None
                self.block += 1
                return
        self._verdict()

    def step(self, action: int) -> None:
        if action == 2:
            if self.awaited:
                self.awaited["stopped"] = True
            else:
                self._ask()
        else:
            if action == 1:
                job = self._send(self.block - self.sent)
                self.sent = self.block
                if self.awaited:
                    self.jobs.append(job)
            if self.awaited:
                self.awaited["next"] = self.t + self.gamma_wait
            else:
                self.t += self.gamma
                self.block += 1
                return
        self._run()
