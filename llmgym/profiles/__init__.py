"""What it costs: kernel cost profiles and the compiled cost of an engine step.

`load("h100/llama-3.1-8b").step_cost()` gives the arrays that the kernels of `llmgym.profiles.cost` read.
"""

from llmgym.profiles.cost import StepCost
from llmgym.profiles.profile import Profile, constant, linear, load, names

__all__ = ["Profile", "StepCost", "constant", "linear", "load", "names"]
