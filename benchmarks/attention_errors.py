"""How far SLAY is from the kernel that it approximates, by feature budget: the table that AttentionBudget's ledger reads.

python benchmarks/attention_errors.py            (about two minutes on two cores; needs the train extra)

Random input goes through random projections into one causal head (`llmgym.profiles.slay.Heads`). The error of a budget is the norm
of what the output differs from that of the exact spherical Yat kernel, over the norm of the latter, as a mean over seeds. Writes
`errors.csv` and `errors.json` (how, with what, when) into `llmgym/envs/attention/data`.
"""

import csv
import datetime
import itertools
import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.profiles import slay

OUT = Path(__file__).parent.parent / "llmgym" / "envs" / "attention" / "data"
HEAD_DIMS = (16, 32, 64, 128)
NODES, FEATURES, ANCHORS = (1, 2, 3), (4, 8, 16, 32), (8, 16, 32)
LENGTH, BATCH, SEEDS = 256, 2, 12
COLUMNS = ("head_dim", "polynomial", "nodes", "features", "anchors", "error", "spread", "error_without_bias")


def errors(
    torch: Any, head_dim: int, budget: tuple[int, int, int], polynomial: str, bias: bool
) -> np.ndarray[Any, Any]:
    """Relative errors of one budget, float64 [SEEDS]; a budget of no random features is the quadrature alone.

    Args:
        torch: the module.
        head_dim: entries of the head, and width of the layer.
        budget: R, M, P.
        polynomial: of `llmgym.profiles.slay.POLYNOMIALS`, `"quadrature"` or `"limit"` (anchors and features without end).
        bias: whether the projections have one.
    """
    found = []
    for seed in range(SEEDS):
        heads = slay.Heads.draw(torch, 1, head_dim, LENGTH, BATCH, seed, bias=bias)
        exact = slay.exact(torch, heads.q, heads.k, heads.v)
        if polynomial in ("quadrature", "limit"):
            kernel = partial(slay.quadrature_kernel, nodes=budget[0])
            if polynomial == "limit":
                kernel = partial(slay.anchor_kernel, head_dim=head_dim, nodes=budget[0])

            def scores(x: Any, kernel: Any = kernel) -> Any:
                return torch.from_numpy(kernel(x.double().numpy())).float()

            out = slay.exact(torch, heads.q, heads.k, heads.v, scores)
        elif polynomial == "exact":
            # x^2 times the random features' product: what d^2 products a feature would give, without writing them out
            generator = torch.Generator().manual_seed(1000 + seed)
            f = slay.Slay.draw(torch, head_dim, budget, generator, polynomial=slay.LAPLACE)
            cosine = slay.unit(torch, heads.q) @ slay.unit(torch, heads.k).transpose(-1, -2)
            random = f(heads.q) @ f(heads.k).transpose(-1, -2)
            out = slay.normalized((cosine.square() * random).tril(), heads.v)
        else:
            generator = torch.Generator().manual_seed(1000 + seed)
            f = slay.Slay.draw(torch, head_dim, budget, generator, polynomial=polynomial)
            out = slay.quadratic(f(heads.q), f(heads.k), heads.v)
        found.append(slay.relative_error(torch, out, exact))
    return np.array(found)


def main() -> None:
    """Measure everything and write it."""
    import torch

    cases: list[tuple[str, tuple[int, int, int]]] = [
        ("anchor", budget) for budget in itertools.product(NODES, FEATURES, ANCHORS)
    ]
    cases += [("exact", (nodes, m, 0)) for nodes, m in itertools.product(NODES, FEATURES)]
    cases += [(name, (nodes, 0, 0)) for name in ("quadrature", "limit") for nodes in NODES]
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "errors.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for head_dim in HEAD_DIMS:
            for polynomial, budget in cases:
                biased, plain = (errors(torch, head_dim, budget, polynomial, bias) for bias in (True, False))
                row = [f"{biased.mean():.4f}", f"{biased.std(ddof=1):.4f}", f"{plain.mean():.4f}"]
                writer.writerow([head_dim, polynomial, *budget, *row])
            print(f"head_dim={head_dim} done", flush=True)
    meta = {
        "date": datetime.date.today().isoformat(),
        "script": "benchmarks/attention_errors.py",
        "method": f"one causal head, width = head_dim, {LENGTH} tokens, {BATCH} sequences, {SEEDS} seeds, eps = {slay.EPSILON:g}, "
        "normal input, projections as torch draws them; relative L2 error of the output against the exact spherical Yat kernel: "
        "mean, standard deviation over the seeds, and the mean where the projections have no bias",
        "versions": {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    }
    (OUT / "errors.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
