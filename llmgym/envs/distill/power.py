"""Power of the stages of a distillation programme: the logs of the paper's harness, measured kernels, and power caps."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmgym import profiles
from llmgym.core.checks import number
from llmgym.envs.distill.published import (
    HALF,
    HALF_ENERGY,
    KD,
    LIMIT_W,
    LOGITS_KWH,
    LOGITS_W,
    ONLINE,
    ONLINE_SHARE,
    SFT,
    SIZES,
    STATIC_W,
    STUDENT_KWH,
    STUDENT_W,
    SYNTHETIC,
    TEXT_W,
)
from llmgym.errors import InvalidArgument

PAPER = "paper"
"""Powers of the logs of the paper's harness."""


def capped(
    power_w: float, hours: float, bound: float, cap_w: float, static_w: float = STATIC_W
) -> tuple[float, float]:
    """Power and time of a stage under a power cap.

    An assumption, as no measurement of these stages under caps is public: dynamic power goes with the cube of the clock, and only
    the share of the time that compute bounds stretches with it. With `f = ((cap - static) / (power - static)) ** (1/3)`, a stage
    takes `hours * (1 - bound + bound / f)` at the power of the cap. A cap at or above the power of the stage changes nothing.

    Args:
        power_w: mean power without a cap, W.
        hours: time without a cap, h.
        bound: share of the time that compute bounds, 0 to 1.
        cap_w: the cap, W.
        static_w: power that no cap takes away, W.

    Returns:
        Power (W) and time (h).

    Raises:
        InvalidArgument: a value below 0, a share above 1, or a cap that leaves no dynamic power.
    """
    number("power_w", power_w)
    number("hours", hours, True)
    if number("bound", bound, True) > 1.0:
        raise InvalidArgument(f"bound={bound!r}: expected a share from 0 to 1")
    if number("cap_w", cap_w) <= number("static_w", static_w, True):
        raise InvalidArgument(f"cap_w={cap_w!r}: expected more than the static power of {static_w:g} W")
    if cap_w >= power_w:
        return power_w, hours
    clock = ((cap_w - static_w) / (power_w - static_w)) ** (1.0 / 3.0)
    return cap_w, hours * (1.0 - bound + bound / clock)


@dataclass(frozen=True)
class Powers:
    """Power of every stage without a cap, W.

    Attributes:
        student: of a student's training by pipeline and size, [5, 3].
        logits: while the teacher's logits are cached.
        text: while text is generated, and while a student is evaluated.
        static: what no cap takes away.
        source: where they come from.
    """

    student: NDArray[np.float64]
    logits: float
    text: float
    static: float
    source: str


def _online_w(student: NDArray[np.float64], logits: float, epochs: float) -> NDArray[np.float64]:
    """Power of online distillation by size: the teacher's passes and the student's steps take turns on one GPU."""
    teacher_kwh = epochs * ONLINE_SHARE * LOGITS_KWH
    kwh = np.array(STUDENT_KWH[KD])
    return (kwh + teacher_kwh) / (kwh / student[KD] + teacher_kwh / logits)


def powers(source: str = PAPER, epochs: float = 1.0) -> Powers:
    """Power of every stage.

    Args:
        source: `paper`, or a kernel set with the measured power of a layer, such as `h100/kernels`: training gives that of
            fine-tuning, prefill that of caching logits, decode at the largest batch that of generating text, and a GPU at rest
            what no cap takes away. Distillation from cached logits was not measured, so its power is the paper's.
        epochs: passes over the data in which a teacher that runs beside its student is asked.

    Raises:
        UnknownName: there is no such kernel set.
        InvalidArgument: the set has no measured power.
    """
    student = np.zeros((5, len(SIZES)))
    student[: len(STUDENT_W)] = STUDENT_W
    logits, text, static = LOGITS_W, TEXT_W, STATIC_W
    if source != PAPER:
        kernels = profiles.load_kernels(source)
        watts = _measured(kernels, source)
        student[SFT] = student[SYNTHETIC] = watts["training"]
        logits, text, static = watts["prefill"], watts["decode"], watts["at rest"]
    student[HALF] = student[SFT]
    student[ONLINE] = _online_w(student, logits, number("epochs", epochs))
    return Powers(np.minimum(student, LIMIT_W), min(logits, LIMIT_W), min(text, LIMIT_W), static, source)


def _measured(kernels: profiles.Kernels, source: str) -> dict[str, float]:
    """Power of a layer in training, in prefill and in decode, and of a GPU at rest, W: the largest batch of each."""
    largest: dict[str, tuple[float, float]] = {}
    for row in kernels.rows:
        if row.op != "power" or not np.isfinite(row.power_w):
            continue
        for name in ("training", "prefill", "decode", "at rest"):
            batch = float(dict(row.shape).get("batch", 1))
            if name in row.variant and batch >= largest.get(name, (0.0, 0.0))[0]:
                largest[name] = batch, row.power_w
    missing = [name for name in ("training", "prefill", "decode", "at rest") if name not in largest]
    if missing:
        raise InvalidArgument(
            f"power={source!r}: this kernel set has no measured power of {', '.join(missing)}"
        )
    return {name: watts for name, (_, watts) in largest.items()}


def training_kwh(epochs: float) -> NDArray[np.float64]:
    """Energy of a student's training without a cap by pipeline and size, kWh, float64 [5, 3].

    Args:
        epochs: passes over the data in which a teacher that runs beside its student is asked.
    """
    sft, kd, synthetic = (np.array(row) for row in STUDENT_KWH)
    online = kd + number("epochs", epochs) * ONLINE_SHARE * LOGITS_KWH
    return np.array([sft, kd, synthetic, HALF_ENERGY * sft, online])
