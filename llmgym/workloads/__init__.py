"""Who asks: arrival processes, length laws, length predictions and traces.

`load` gives a named workload, `from_trace` reads a public trace file, `Workload` puts one together from `poisson`, `gamma`,
`on_off`, ... and `uniform`, `lognormal`, `quantiles`, .... Compiled code takes a `Traffic` (`Workload.traffic`) and calls
`llmgym.workloads.traffic.draw`, which is not imported here because it needs numba.
"""

from llmgym.workloads.arrivals import (
    Arrivals,
    Modulation,
    Profile,
    Rows,
    burst,
    gamma,
    on_off,
    poisson,
    regular,
    replay,
)
from llmgym.workloads.conversations import Conversations, exponential_think, geometric, lognormal_think
from llmgym.workloads.lengths import Lengths, RequestClass, fixed, lognormal, mixture, quantiles, uniform
from llmgym.workloads.named import check_name, load, names, workload_of
from llmgym.workloads.traces import from_trace
from llmgym.workloads.workload import Phase, Requests, Workload

__all__ = [
    "Arrivals",
    "Conversations",
    "Lengths",
    "Modulation",
    "Phase",
    "Profile",
    "RequestClass",
    "Requests",
    "Rows",
    "Workload",
    "burst",
    "check_name",
    "exponential_think",
    "fixed",
    "from_trace",
    "gamma",
    "geometric",
    "load",
    "lognormal",
    "lognormal_think",
    "mixture",
    "names",
    "on_off",
    "poisson",
    "quantiles",
    "regular",
    "replay",
    "uniform",
    "workload_of",
]
