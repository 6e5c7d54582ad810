"""Scenarios of SegmentedPrefill: named settings of model, card, requests, deadlines and modes."""

from dataclasses import dataclass

from llmgym.core.checks import members, number
from llmgym.core.settings import count, given, option, quantity
from llmgym.envs.segmented.law import DEVICES, MODELS
from llmgym.envs.segmented.modes import TRAINED, check_modes, check_trained, names
from llmgym.errors import InvalidArgument
from llmgym.workloads import check_name

DECISIONS = {"all": 1, "mode": 0}
"""What is decided, each with the value of `llmgym.envs.segmented.state.Config.all`."""
MENU = ("full", "chunked-2048", "duo", "streaming", TRAINED, "segmented-8192-512-512")
"""One of each family, and a segmented mode that nobody trained."""
CLASSES = ((0.4, 1.0, 2.0), (0.3, 0.98, 4.0), (0.3, 0.9, 1.5))
"""Careful, patient and hurried requests."""


def check_classes(name: str, value: object) -> None:
    """Fail unless a setting is a tuple of (share, least quality, slack) of at most 8 classes. Raises `InvalidArgument`."""
    expected = "1 to 8 of (share, least quality, slack), such as ((1.0, 0.98, 2.0),)"
    wrong = InvalidArgument(f"{name}={value!r}: expected {expected}")
    classes = members(name, value, expected)
    if not 1 <= len(classes) <= 8:
        raise wrong
    for one in classes:
        if not isinstance(one, (tuple, list)) or len(one) != 3:
            raise wrong
        for part, x in zip(("share", "least quality", "slack"), one, strict=True):
            number(f"{part} in {name}", x, zero=part == "least quality")


@dataclass(frozen=True)
class Scenario:
    """Settings of SegmentedPrefill; each of them is also an argument of the environment."""

    about: str
    model: str = option("llama-2-7b", "Model whose shapes give memory and time.", MODELS)
    device: str = option("a100", "Card that it runs on.", DEVICES)
    memory_gib: float | None = quantity(
        None, "Memory of the card, GiB; `None`: as it is.", low=1.0, high=4096.0, unit="GiB"
    )
    modes: tuple[str, ...] = given(
        MENU,
        "Execution modes to choose from.",
        allowed=f"1 to {len(names())} of {names()[0]}, chunked-c, duo, streaming, segmented-S-M-R",
        check=check_modes,
    )
    trained: tuple[str, ...] = given(
        (TRAINED,),
        "Segmented modes that the model was trained for; others answer badly.",
        allowed="segmented modes",
        check=check_trained,
    )
    workload: str | None = given(
        None,
        "Named workload whose prompts and outputs are drawn; `None`: lognormal and geometric ones.",
        check=check_name,
        allowed="a name in `llmgym.workloads.names()`, or a trace file",
    )
    prompt_median: int = count(16_384, "Median of lognormal prompts, tokens.", high=2**20, unit="tokens")
    prompt_sigma: float = quantity(
        1.0, "Standard deviation of the logarithm of lognormal prompts.", zero=True
    )
    prompt_least: int = count(2048, "Shortest prompt, tokens.", high=2**20, unit="tokens")
    prompt_most: int = count(262_144, "Longest prompt, tokens.", high=2**20, unit="tokens")
    output_mean: float = quantity(128.0, "Mean of geometric outputs, tokens.", low=1.0, unit="tokens")
    output_most: int = count(
        512, "Longest output, for which memory is kept, tokens.", high=2**16, unit="tokens"
    )
    load: float = quantity(
        0.8, "Arrivals over what the card could prefill in the paper's mode, one after the other."
    )
    requests: int = count(60, "Requests of an episode.", high=256)
    classes: tuple[tuple[float, float, float], ...] = given(
        CLASSES,
        "Classes of requests: share, least quality over that of full attention, and slack, the limit on the time to the first "
        "token over the time alone in the paper's mode.",
        allowed="1 to 8 triples",
        check=check_classes,
    )
    limit_s: float = quantity(
        2.0, "Added to every limit on the time to the first token, seconds.", zero=True, unit="s"
    )
    tpot_limit_s: float | None = quantity(
        None, "Limit on the mean time of a later token, seconds; `None`: there is none.", unit="s"
    )
    quality_weight: float = quantity(
        10.0, "Cost of an answer for each unit of quality that it lacks.", zero=True
    )
    memory_weight: float = quantity(
        1e-4, "Cost of memory that requests hold, 1/(GiB s).", zero=True, unit="1/(GiB s)"
    )
    lost_cost: float = quantity(5.0, "Cost of a request that is lost as memory ran out.", zero=True)
    reject_cost: float = quantity(
        1.0, "Cost of a request that is rejected, or open when the episode is cut.", zero=True
    )
    most_lost: int = count(3, "An episode is cut when so many requests were lost.", high=256)
    window: int = count(4, "Oldest waiting requests that can be admitted.", high=16)
    slots: int = count(8, "Requests that are admitted at once.", high=32)
    evictions: int = count(2, "Times that a request can lose its place.", low=0, high=8)
    decode_tokens: int = count(
        32, "Tokens that each request decodes in a step of decoding, at most.", high=1024, unit="tokens"
    )
    horizon_s: float = quantity(36_000.0, "An episode is cut after this time, seconds.", unit="s")


SCENARIOS: dict[str, Scenario] = {
    "paper": Scenario("Llama-2-7B on an 80 GiB card, prompts around 16K tokens up to 256K"),
    "real": Scenario(
        "Llama-3.1-8B on an H200 by measured kernels, prompts of a public trace of long conversations",
        model="llama-3.1-8b",
        device="h200",
        workload="mooncake-conversation",
        limit_s=0.5,
        tpot_limit_s=0.15,
    ),
    "stress": Scenario(
        "everything there is on a card of 40 GiB that is overloaded, three segmented modes trained for",
        device="a100-40",
        modes=names(),
        trained=(TRAINED, "segmented-4096-0-512", "segmented-4096-512-0"),
        load=1.3,
        tpot_limit_s=0.3,
        prompt_sigma=1.3,
    ),
    "untrained": Scenario(
        "a model that was trained with full attention: every segmented mode answers badly",
        trained=(),
        load=0.5,
    ),
    "small": Scenario(
        "the paper's card with decoding under a limit, 24 requests", requests=24, tpot_limit_s=0.3, load=1.0
    ),
}
