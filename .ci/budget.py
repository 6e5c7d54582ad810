"""Hold the CPU time of the tests to a budget: python .ci/budget.py REPORT, with the file that LLMGYM_CPU_REPORT named."""

import json
import sys
from pathlib import Path

ENVIRONMENT_S = 150.0
"""Of one environment, or of what the environments of a family share, CPU seconds.

Machines differ by a factor of two and more from one hour to the next, so this finds what doubles, not what grows by a tenth.
"""
ALL_S = 1500.0
"""Of all of them together."""

spent: dict[str, float] = json.loads(Path(sys.argv[1]).read_text())
folders = {
    "core",
    "testing",
    "policies",
    "evaluation",
    "profiles",
    "workloads",
    "serving",
    "baselines",
    "benchmarks",
    "papers",
}
over = [
    f"{name}: {seconds:.0f} CPU s, {ENVIRONMENT_S:.0f} are allowed"
    for name, seconds in spent.items()
    if seconds > ENVIRONMENT_S and name not in folders and not name.startswith("test_")
]
total = sum(spent.values())
if total > ALL_S:
    over.append(f"all tests: {total:.0f} CPU s, {ALL_S:.0f} are allowed")
print("\n".join(over) or f"{total:.0f} CPU s in all; every environment within {ENVIRONMENT_S:.0f}")
sys.exit(1 if over else 0)
