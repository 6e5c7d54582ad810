"""Measure the questions on real text that Forage's scenario `real` plays: writes `llmgym/envs/forage/data/stdlib.npz`.

pip install 'llmgym[text]' && python benchmarks/build_forage_text.py

The text is that of the Python that runs this (about a second a question). The file holds scores and ranks, no text.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from llmgym.envs.forage.bank import SHIPPED
from llmgym.envs.forage.text import build


@dataclass(frozen=True)
class Arguments:
    """What to measure.

    Attributes:
        out: file to write.
        questions: how many.
        parts: of each document, 192 words each.
        seed: of the stretches of text and of the facts.
    """

    out: Path = SHIPPED / "stdlib.npz"
    questions: int = 128
    parts: int = 256
    seed: int = 0


if __name__ == "__main__":
    arguments = tyro.cli(Arguments)
    told = build(arguments.out, questions=arguments.questions, parts=arguments.parts, seed=arguments.seed)
    print(json.dumps(told, indent=2))
