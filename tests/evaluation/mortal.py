"""The queue of tests/toy.py with rules of its own, one of which kills its process: the first that finds the file named by
`LLMGYM_TEST_DIES` and takes it away.
"""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import llmgym
from llmgym.baselines.rule import Factory, Rule
from tests.toy import Toy

ID = "mortal/Queue-v0"
DIES = "LLMGYM_TEST_DIES"


class Serves(Rule[Toy]):
    """Serves so many in the first half of an episode, one in the second."""

    def __init__(self, env: Any, name: str, serve: int = 1) -> None:
        super().__init__(env, name, Toy)
        self.serve = serve
        self.calls = 0

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[np.int64]:
        """Actions, int64 [lanes]."""
        self.calls += 1
        return np.where(obs[:, 1] < 0.5, self.serve, 1)


class Mortal(Serves):
    """Dies in the middle of its first block."""

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[np.int64]:
        """Actions, int64 [lanes]."""
        if self.calls == 20 and DIES in os.environ:
            try:
                Path(os.environ[DIES]).unlink()
            except FileNotFoundError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().act(obs, mask)


class Doomed(Serves):
    """Dies wherever it is not at home."""

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[np.int64]:
        """Nothing, ever."""
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Wild(Serves):
    """Asks for what there is not."""

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[np.int64]:
        """Actions, int64 [lanes]."""
        return np.full(len(obs), 7)


BASELINES = {
    "serves": Factory("serves", Serves, {"serve": int}),
    "mortal": Factory("mortal", Mortal, {"serve": int}),
    "doomed": Factory("doomed", Doomed),
    "wild": Factory("wild", Wild),
}
GRIDS = {"mortal": ("mortal:serve=0", "mortal:serve=1", "mortal:serve=2")}

SPEC = llmgym.EnvSpec(
    ID,
    env="tests.toy:ToyEnv",
    vector_env="tests.toy:ToyVectorEnv",
    baselines="tests.evaluation.mortal",
)
"""Registered by the tests that want it and by nobody else: what plays every environment must not meet these rules."""
