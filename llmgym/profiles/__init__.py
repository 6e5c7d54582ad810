"""What it costs: kernel cost profiles and the compiled cost of an engine step.

`load("h100/llama-3.1-8b").step_cost()` gives the arrays that the kernels of `llmgym.profiles.cost` read.
"""

from llmgym.profiles.cost import StepCost
from llmgym.profiles.kernels import Kernels, kernel_names, load_kernels
from llmgym.profiles.named import load, names
from llmgym.profiles.profile import Profile, constant, linear

__all__ = [
    "Kernels",
    "Profile",
    "StepCost",
    "constant",
    "kernel_names",
    "linear",
    "load",
    "load_kernels",
    "names",
]
