"""Text that was measured on a masked-diffusion language model: how sure it was, how right, and what its tokens tell of each other.

`benchmarks/unmask_model.py` trains such a model and measures it on held-out text, block by block: what it says of all positions
when the block is all masked, and what it says when one of them is known. From these pairs follows what it says when several are
known, by a rule whose few numbers the script fits, and whose error it measures on random sets: the strongest effect counts in
full, the weaker ones in part. An independent autoregressive model judges what is written wrong. A folder holds `denoiser.npz` and
`meta.json`; one ships, `data/denoiser`.
"""

import functools
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import InvalidArgument, UnknownName

PHRASES = "phrases"
"""The text that needs no table."""
QUANTITIES = ("log_true", "log_top", "entropy", "margin")
"""What a table holds of a position: ln of the probability of the true token and of the likeliest one, the entropy (nats), and the
probability of the likeliest token less that of the second."""
LOG_TRUE, LOG_TOP, ENTROPY, MARGIN = range(len(QUANTITIES))
FORMAT = 1
FILE, META = "denoiser.npz", "meta.json"


@dataclass(frozen=True, eq=False)
class Excerpts:
    """Measured blocks of text.

    Attributes:
        name: of the text.
        values: float32 [blocks, 1 + block, block, 4], the `QUANTITIES`. Row 0 of the second axis: nothing is known; row 1 + i:
            position i is. An entry of a position that is known is 0, its margin 1.
        right: whether the likeliest token is the true one, uint8 [blocks, 1 + block, block], with the rows of `values`.
        damage: by how many nats another model finds the text less likely with the likeliest token in it, float32
            [blocks, 1 + block, block], with the rows of `values`; 0 where that token is the true one.
        vocabulary: tokens of the model.
        shares: how much of the effects beside the strongest one counts, by quantity, float64 [4].
        about: where it comes from.
    """

    name: str
    values: NDArray[np.float32]
    right: NDArray[np.uint8]
    damage: NDArray[np.float32]
    vocabulary: int
    shares: NDArray[np.float64]
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.values.shape
        if len(shape) != 4 or shape[0] < 1 or shape[1] != shape[2] + 1 or shape[3] != len(QUANTITIES):
            raise InvalidArgument(f"values of shape {shape}: expected [blocks, 1 + block, block, 4]")
        for name in ("right", "damage"):
            found = getattr(self, name).shape
            if found != shape[:3]:
                raise InvalidArgument(f"{name} of shape {found}: expected {shape[:3]}")
        if not np.isfinite(self.damage).all() or self.damage[self.right == 1].any():
            raise InvalidArgument("damage: expected finite numbers, 0 where the likeliest token is right")
        if self.shares.shape != (len(QUANTITIES),) or not ((self.shares >= 0) & (self.shares <= 1)).all():
            raise InvalidArgument(f"shares={self.shares!r}: expected four numbers from 0 to 1")
        logs, entropy, margin = self.values[..., :2], self.values[..., ENTROPY], self.values[..., MARGIN]
        if not np.isfinite(self.values).all() or (logs > 0).any():
            raise InvalidArgument("values: expected finite numbers, logarithms of probabilities at most 0")
        if (entropy < 0).any() or (entropy > math.log(self.vocabulary) + 1e-3).any():
            raise InvalidArgument(f"values: expected entropies from 0 to ln {self.vocabulary}")
        if (margin < 0).any() or (margin > 1).any():
            raise InvalidArgument("values: expected margins from 0 to 1")

    @property
    def block(self) -> int:
        """Positions of a block."""
        return self.values.shape[2]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Excerpts) and self.name == other.name and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash((self.name, self.digest()))

    def digest(self) -> bytes:
        """The bytes that matter to a world."""
        return b"".join(x.tobytes() for x in (self.values, self.right, self.damage, self.shares))


def decode(code: NDArray[np.uint8], finest: float, coarsest: float) -> NDArray[np.float64]:
    """The numbers of codes, which are even in log(1 + x / finest): code 255 is the coarsest number.

    Args:
        code: any shape.
        finest: scale below which steps are even in the number itself.
        coarsest: the largest number.

    Returns:
        Numbers from 0 to `coarsest`, float64 of the shape of `code`.
    """
    return finest * np.expm1(code.astype(np.float64) / 255.0 * math.log1p(coarsest / finest))


def decode_signed(code: NDArray[np.uint8], finest: float, coarsest: float) -> NDArray[np.float64]:
    """The numbers with a sign of codes: 0 for code 128, else even in log(1 + |x| / finest) on either side, in 127 steps.

    Args:
        code: any shape.
        finest: scale below which steps are even in the number itself.
        coarsest: the largest number.

    Returns:
        Numbers from -`coarsest` to `coarsest`, float64 of the shape of `code`; code 0 lies a step beyond.
    """
    steps = code.astype(np.float64) - 128.0
    size = finest * np.expm1(np.abs(steps) / 127.0 * math.log1p(coarsest / finest))
    return np.copysign(size, steps)


def undo_difference(code: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The codes [blocks, 1 + block, block] of a file, in which all rows but the first are differences to it, modulo 256."""
    out = code.copy()
    out[:, 1:] += code[:, :1]
    return out


def read(data: bytes, meta: Mapping[str, Any], name: str, domain: int) -> Excerpts:
    """The measured blocks of one domain of a file that `benchmarks/unmask_model.py` wrote.

    Args:
        data: bytes of `denoiser.npz`.
        meta: contents of `meta.json`.
        name: name of the text.
        domain: number of the domain.

    Returns:
        The blocks of the domain, with what is said of them.

    Raises:
        InvalidArgument: the file has another format, or nothing of this domain.
    """
    if meta.get("format") != FORMAT:
        raise InvalidArgument(f"{META}: format {meta.get('format')!r}; this version reads {FORMAT}")
    measured = meta["measured"]
    finest, coarsest, finest_signed, coarsest_signed = (
        float(measured["coding"][key]) for key in ("finest", "coarsest", "finest_signed", "coarsest_signed")
    )
    with np.load(io.BytesIO(data)) as arrays:
        chosen = arrays["domain"] == domain
        if not chosen.any():
            raise InvalidArgument(f"domain={domain}: {FILE} has no block of it")
        block = arrays["deficit_true"].shape[2]
        columns = [
            decode(undo_difference(arrays[key][chosen]), finest, coarsest)
            for key in ("deficit_true", "deficit_top", "entropy", "margin_lost")
        ]
        right = np.unpackbits(arrays["right"][chosen], axis=2, count=block)
        damage = decode_signed(undo_difference(arrays["damage"][chosen]), finest_signed, coarsest_signed)
    vocabulary = int(measured["vocabulary"])
    true, top, entropy, lost = columns
    true = np.where(right == 1, top, true)
    values = np.stack(
        [-true, -top, np.minimum(entropy, math.log(vocabulary)), np.clip(1.0 - lost, 0.0, 1.0)], axis=-1
    ).astype(np.float32)
    own = np.arange(block)
    values[:, own + 1, own, :MARGIN] = 0.0
    values[:, own + 1, own, MARGIN] = 1.0
    about = {key: meta[key] for key in ("what", "script", "date", "machine") if key in meta}
    shares = np.array([measured["combination"]["shares"][key] for key in QUANTITIES], np.float64)
    return Excerpts(name, values, right, damage.astype(np.float32), vocabulary, shares, about)


def load_folder(folder: str | Path, domain: str) -> Excerpts:
    """The measured blocks of one domain in a folder that `benchmarks/unmask_model.py` wrote.

    Args:
        folder: with `denoiser.npz` and `meta.json`.
        domain: such as `code` or `prose`.

    Raises:
        InvalidArgument: a file is missing, or of another format.
        UnknownName: no such domain.
    """
    path = Path(folder)
    for name in (FILE, META):
        if not (path / name).is_file():
            raise InvalidArgument(f"folder={str(folder)!r}: {name} is missing")
    meta = json.loads((path / META).read_text(encoding="utf-8"))
    domains = meta.get("measured", {}).get("domains", [])
    if domain not in domains:
        raise UnknownName("domain", domain, domains)
    return read((path / FILE).read_bytes(), meta, f"model-{domain}", domains.index(domain))


def _shipped() -> Any:
    return files("llmgym.envs.unmask") / "data" / "denoiser"


@functools.cache
def shipped_meta() -> dict[str, Any]:
    """The contents of `meta.json` of the table that ships."""
    return dict(json.loads((_shipped() / META).read_text(encoding="utf-8")))


def _domains() -> list[str]:
    """Domains of the table that ships."""
    return list(shipped_meta()["measured"]["domains"])


def names() -> list[str]:
    """Names that a scenario's `text` can be: `phrases`, and `model-<domain>` of the table that ships."""
    return [PHRASES, *(f"model-{domain}" for domain in _domains())]


def load(text: Any) -> Excerpts | None:
    """The measured text of a name, or as it is; None for phrases.

    Raises:
        UnknownName: there is none of this name.
        InvalidArgument: `text` is something else.
    """
    if isinstance(text, Excerpts):
        return text
    if not isinstance(text, str):
        raise InvalidArgument(f"text={text!r}: expected a name or an Excerpts")
    if text == PHRASES:
        return None
    if text not in names():
        raise UnknownName("text", text, names())
    return _load_shipped(text)


@functools.cache
def _load_shipped(name: str) -> Excerpts:
    """The table that ships, of one domain."""
    domain = _domains().index(name.removeprefix("model-"))
    return read((_shipped() / FILE).read_bytes(), shipped_meta(), name, domain)
