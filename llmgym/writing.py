"""All that the file of an environment of one's own needs, in one import: see `docs/write_your_own.md`.

from llmgym.writing import Kernels, Layout, Record, Simulation, env_classes, float64, int64, kernel, metric, shown
"""

from gymnasium.spaces import Box, Discrete, MultiDiscrete

from llmgym.baselines.rule import rule
from llmgym.core import rng
from llmgym.core.checks import choice, number, whole
from llmgym.core.env import LaneEnv, env_classes, vector_env
from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels, Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.records import Record, boolean, float32, float64, int8, int32, int64, metric, shown, uint64
from llmgym.core.spec import EnvSpec, register

__all__ = [
    "Box",
    "Discrete",
    "EnvSpec",
    "Field",
    "Kernels",
    "LaneEnv",
    "Layout",
    "MultiDiscrete",
    "Record",
    "Simulation",
    "boolean",
    "choice",
    "env_classes",
    "float32",
    "float64",
    "int8",
    "int32",
    "int64",
    "kernel",
    "metric",
    "number",
    "register",
    "rng",
    "rule",
    "shown",
    "uint64",
    "vector_env",
    "whole",
]
