"""The benchmarks are scripts beside the package: their folder is put where a script finds its own modules."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
