"""Scenarios of Unmask: named settings of the language, the text, its blocks and the price of quality."""

from dataclasses import dataclass
from typing import Any

from llmgym.core.settings import count, flag, given, option, quantity, some_of
from llmgym.envs.unmask.costs import CLOCKS
from llmgym.envs.unmask.process import MOST_PHRASES, MOST_TOKENS, MOST_TOPICS
from llmgym.envs.unmask.tables import load

ACTIONS = ("add", "set", "macro")
MODES = {"generate": 0, "score": 1}
"""Where the tokens come from, each with the value of `llmgym.envs.unmask.state.Config.score`."""
COSTS = ("calls", "time")
INTERLEAVES = (1, 2, 4)
MOST_BLOCK, MOST_TEXT = 64, 256
"""Bounds of a block and of a text; all that a lane keeps has to fit into 32 KB."""
PRICES = (0.01, 100.0)
"""Bounds of lambda, calls per nat."""
LEAST_NOISE = 0.005
"""Below, the probability of a block of nothing but noise could not be told from 0."""


def _check_text(name: str, value: Any) -> None:
    load(value)


@dataclass(frozen=True)
class Scenario:
    """Settings of Unmask; each of them is also an argument of the environment.

    Attributes:
        about: a sentence on the scenario.
    """

    about: str
    tokens: int = count(64, "Tokens to generate, a multiple of `block`.", low=2, high=MOST_TEXT)
    block: int = count(
        16, "Positions of a block; blocks are filled from left to right.", low=2, high=MOST_BLOCK
    )
    prompt: int = count(8, "True tokens before the first block.", high=64)
    text: Any = given(
        "phrases",
        "What is written: phrases, or the name or object of text that was measured on a model.",
        check=_check_text,
        allowed="`phrases`, a name of `tables.names()`, an `Excerpts`",
    )
    mode: str = option(
        "generate",
        "Whether tokens are drawn from the marginals, or a true text is revealed and scored.",
        MODES,
    )
    action: str = option(
        "add",
        "One position at a time until the call is fired, a whole set at once, or one of ten known rules.",
        ACTIONS,
    )
    lambda_low: float = quantity(
        0.1, "Least price of a nat of divergence, in calls.", low=PRICES[0], high=PRICES[1], unit="calls/nat"
    )
    lambda_high: float = quantity(
        10.0,
        "Largest price; an episode's is log-uniform in between.",
        low=PRICES[0],
        high=PRICES[1],
        unit="calls/nat",
    )
    cost: str = option("calls", "What a call costs: 1, or its time over that of the mean call.", COSTS)
    clock: str = option(
        "published", "What a call takes: the paper's wall clock, or kernels of an 8B model.", CLOCKS
    )
    context: int = count(
        512, "Tokens of the prompt whose attention a call pays for with measured kernels.", high=32_768
    )
    reuse: bool = flag(
        False, "Keys and values of earlier blocks are kept, so that a call computes one block only."
    )
    interleave: tuple[int, ...] = some_of(
        (1,),
        "Independent texts that take turns position by position; each world has one of these numbers.",
        INTERLEAVES,
    )
    show_interleave: bool = flag(False, "The number of interleaved texts is observed.")
    processes: int = count(8, "Languages; each world has one of them.", high=64)
    process_seed: int = count(0, "Seed of the first language; the others follow.", low=0)
    topics: int = count(2, "Topics of a language.", high=MOST_TOPICS)
    phrases: int = count(16, "Phrases of a language, of 2 to 6 tokens each.", low=2, high=MOST_PHRASES)
    vocabulary: int = count(32, "Tokens of a language.", low=2, high=MOST_TOKENS)
    noise: float = quantity(0.02, "Probability with which a token is any token.", low=LEAST_NOISE, high=0.9)
    alpha: float = quantity(
        0.15, "How evenly a phrase is followed by others; near 0 nearly always by the same one.", high=100.0
    )
    denoiser_error: float = quantity(
        0.0, "Weight of the uniform law in a marginal far from known tokens.", zero=True, high=1.0
    )
    error_tokens: float = quantity(8.0, "Distance over which that weight grows, tokens.", unit="tokens")


SCENARIOS: dict[str, Scenario] = {
    "paper": Scenario(
        "256 tokens in blocks of 32 with an exact denoiser, a nat as dear as a call, the paper's wall clock",
        tokens=256,
        block=32,
        lambda_low=1.0,
        lambda_high=1.0,
    ),
    "real": Scenario(
        "code, measured on a masked-diffusion model that was trained for this; a call is that of an 8B model on an H100",
        tokens=128,
        text="model-code",
        mode="score",
        cost="time",
        clock="h100",
        context=1024,
        reuse=True,
    ),
    "mixed": Scenario(
        "an 8B model on an H100 by measured kernels, keys and values kept; phrases, and two or four columns side by side",
        tokens=128,
        block=32,
        cost="time",
        clock="h100",
        context=1024,
        reuse=True,
        interleave=(1, 2, 4),
    ),
    "stress": Scenario(
        "one block of 64, a denoiser that errs far from known tokens, up to four texts interleaved",
        tokens=64,
        block=64,
        interleave=(1, 2, 4),
        denoiser_error=0.3,
    ),
    "small": Scenario(
        "64 tokens in blocks of 16, eight languages, a nat worth a tenth of a call to ten calls",
    ),
    "columns": Scenario(
        "the same, with one, two or four texts interleaved, which the scheduler is not told",
        interleave=(1, 2, 4),
    ),
}
