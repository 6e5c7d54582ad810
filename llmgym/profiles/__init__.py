"""What it costs: kernel cost profiles and the compiled cost of an engine step.

`load("h100/llama-3.1-8b").step_cost()` gives the arrays that the kernels of `llmgym.profiles.cost` read.
"""

from llmgym.profiles.cost import StepCost
from llmgym.profiles.kernels import Kernels, check_kernels, kernel_names, load_kernels
from llmgym.profiles.llmservingsim import Link, from_llmservingsim
from llmgym.profiles.models import ModelShape
from llmgym.profiles.named import check_name, load, names, profile_of
from llmgym.profiles.profile import Profile, constant, linear

__all__ = [
    "Kernels",
    "Link",
    "ModelShape",
    "Profile",
    "StepCost",
    "check_kernels",
    "check_name",
    "constant",
    "from_llmservingsim",
    "kernel_names",
    "linear",
    "load",
    "load_kernels",
    "names",
    "profile_of",
]
