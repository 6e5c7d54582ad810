"""The measured profiles that ship: what physics says about them, and where they are from."""

import numpy as np
import pytest

from llmgym import profiles
from llmgym.profiles.models import MODELS
from llmgym.profiles.tables import OPS

MEASURED = [name for name in profiles.names() if name.endswith("-measured")]
PEAK_BYTES_PER_S = {"h100": 3.35e12, "h200": 4.8e12}  # NVIDIA's data sheets
PEAK_FLOPS = 989e12  # bf16, dense, both


def grid(profile: profiles.Profile, op: str) -> dict[tuple[int, ...], float]:
    """Microseconds by shape; for decodes (batch, cached tokens of each)."""
    shape = profile.tables[op].shape.copy()
    if op == "decode_attention":
        shape[:, 1] //= shape[:, 0]
    return dict(zip(map(tuple, shape.tolist()), profile.tables[op].latency_us.tolist()))


def growth(cells: dict[tuple[int, ...], float]) -> list[tuple[float, tuple[int, ...]]]:
    """For each cell and each of its variables, the next larger shape's time over its own."""
    found = []
    for axis in range(len(next(iter(cells)))):
        values = sorted({shape[axis] for shape in cells})
        for shape, time in cells.items():
            for bigger in values[values.index(shape[axis]) + 1 :][:1]:
                other = (*shape[:axis], bigger, *shape[axis + 1 :])
                if other in cells:
                    found.append((cells[other] / time, shape))
    return found


def test_both_devices_and_models_are_there() -> None:
    assert set(MEASURED) >= {
        f"{gpu}/{model}-measured" for gpu in PEAK_BYTES_PER_S for model in ("llama-3.1-8b", "qwen2.5-14b")
    }


@pytest.mark.parametrize("name", MEASURED)
def test_provenance(name: str) -> None:
    origin = profiles.load(name).provenance
    assert origin.method == "measured" and {"device", "driver", "torch", "cuda"} <= set(origin.versions)
    assert set(origin.errors) == set(OPS) - {"all_reduce", "send_recv", "decode_attention_beside"}
    assert origin.errors["host"] == {"n": 0}  # not measured, and said so
    for op in ("dense", "prefill_attention", "decode_attention"):
        assert origin.errors[op]["iqr_pct_median"] < 3


@pytest.mark.parametrize("name", MEASURED)
def test_more_work_takes_no_less_time(name: str) -> None:
    """Within the noise; a chunk of up to 64 tokens is where the kernel changes how it divides a long context (torch 2.11)."""
    profile = profiles.load(name)
    for op in ("dense", "decode_attention", "copy_on_device"):
        assert min(growth(grid(profile, op)))[0] > 0.95
    found = growth(grid(profile, "prefill_attention"))
    assert min(ratio for ratio, shape in found if shape[0] >= 128) > 0.98
    assert min(ratio for ratio, shape in found if shape[0] < 128) > 0.7


@pytest.mark.parametrize("name", MEASURED)
def test_nothing_is_faster_than_the_device(name: str) -> None:
    profile = profiles.load(name)
    shape = MODELS[profile.model]
    for (batch, kv), us in grid(profile, "decode_attention").items():
        moved = batch * kv * shape.kv_bytes_per_token
        assert moved / (us * 1e-6) < PEAK_BYTES_PER_S[profile.gpu]
    weights = sum(g.n * g.k for g in shape.gemms(1))
    for (tokens,), us in grid(profile, "dense").items():
        assert 2 * weights * shape.layers * tokens / (us * 1e-6) < PEAK_FLOPS
        assert 2 * weights * shape.layers / (us * 1e-6) < PEAK_BYTES_PER_S[profile.gpu]


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen2.5-14b"])
def test_more_bandwidth_makes_decodes_faster(model: str) -> None:
    """By up to the ratio of the bandwidths where few sequences are long; torch's kernel does not use it with many sequences."""
    h100, h200 = (
        grid(profiles.load(f"{gpu}/{model}-measured"), "decode_attention") for gpu in ("h100", "h200")
    )
    long = {shape: h100[shape] / h200[shape] for shape in h100 if shape[0] * shape[1] >= 2**18}
    assert min(long.values()) > 0.95 and max(long.values()) < 4.8 / 3.35 + 0.05
    assert np.median([ratio for shape, ratio in long.items() if shape[0] <= 4]) > 1.3
