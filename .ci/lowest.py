"""The lowest version of every dependency that pyproject.toml allows, one a line, for pip."""

import tomllib
from pathlib import Path

for dependency in tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]:
    name, _, lowest = dependency.partition(",")[0].partition(">=")
    print(f"{name}=={lowest}")
