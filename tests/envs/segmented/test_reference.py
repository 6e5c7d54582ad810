"""The reference in torch: it computes what it says, needs the memory of the law, and trains on the objective that it runs."""

import sys

import numpy as np
import pytest

from llmgym.envs.segmented.law import GIB, HEAD_DIM, KIB, MODELS, SEGMENT_BYTES, Model, peak_gib, pool_entries
from llmgym.envs.segmented.reference import (
    PREFIX,
    Pool,
    Weights,
    carry,
    choose,
    pooled,
    prefill_full,
    prefill_segmented,
    rotated,
    run_segment,
)
from llmgym.envs.segmented.reference_memory import peak_of, predicted_bytes
from llmgym.envs.segmented.reference_training import segment_losses, truncated_gradients
from llmgym.errors import InvalidArgument, MissingExtra

torch = pytest.importorskip("torch")

SMALL = Model(0.0, 0.0, 2 * HEAD_DIM, 688, 4096, 2, 1, layers=5)
TINY = Model(0.0, 0.0, 2 * HEAD_DIM, 96, 61, 2, 1, layers=2)
GROUPED = Model(0.0, 0.0, 4 * HEAD_DIM, 96, 61, 2, 1, layers=2)
"""Two query heads for each key head."""


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prompt(shape: Model, tokens: int, seed: int = 0):
    return torch.randint(0, shape.vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights.random(SMALL)


@pytest.mark.parametrize("tokens", [512, 1024])
def test_memory_of_the_whole_is_that_of_the_law(weights: Weights, tokens: int) -> None:
    """Cache, logits of all tokens in two types, and hidden states, to 1 %."""
    with peak_of("cpu") as peak:
        prefill_full(weights, prompt(SMALL, tokens))
    assert predicted_bytes(SMALL, tokens) == tokens * (SMALL.kv_bytes + SMALL.whole_bytes)
    assert peak[0] == pytest.approx(predicted_bytes(SMALL, tokens), rel=0.01)


def test_memory_without_logits_is_that_of_a_layer(weights: Weights) -> None:
    """Where the last token's logits alone are wanted: eight times the MLP's width and four times the model's, to 2 %."""
    with torch.no_grad(), peak_of("cpu") as peak:
        run_segment(weights, prompt(SMALL, 1024))
    assert peak[0] == pytest.approx(1024 * (SMALL.kv_bytes + SMALL.layer_bytes), rel=0.02)


@pytest.mark.parametrize(("tokens", "segment"), [(512, 256), (1024, 256), (1024, 512)])
def test_memory_in_segments_is_that_of_the_law(weights: Weights, tokens: int, segment: int) -> None:
    """To 4 %: what is retrieved and the mask of a CPU are not in the law."""
    with peak_of("cpu") as peak:
        prefill_segmented(weights, prompt(SMALL, tokens), segment, 64, 64, first=256)
    assert peak[0] == pytest.approx(predicted_bytes(SMALL, tokens, segment, 64, 64, 256), rel=0.04)
    assert peak[0] < predicted_bytes(SMALL, tokens)


def test_segments_grow_by_the_pool_alone(weights: Weights) -> None:
    """From 512 to 1024 tokens: by the pool's buffer, which doubles; without retrieval by nothing."""
    peaks = {}
    for tokens in (512, 1024):
        for retrieved in (0, 64):
            with peak_of("cpu") as peak:
                prefill_segmented(weights, prompt(SMALL, tokens), 256, 64, retrieved, first=256)
            peaks[tokens, retrieved] = peak[0]
    assert peaks[1024, 0] == pytest.approx(peaks[512, 0], rel=0.005)
    grown = SMALL.pool_bytes * (1024 - 256)
    assert peaks[1024, 64] - peaks[512, 64] == pytest.approx(grown, rel=0.01)


def test_the_law_of_the_environment_is_this_one_and_a_constant() -> None:
    """At the paper's shapes: they differ by what the authors' code holds beside these."""
    shape = MODELS["llama-2-7b"]
    for tokens in (16_384, 32_768, 131_072):
        whole = peak_gib("full", tokens) - shape.weights_gib
        assert predicted_bytes(shape, tokens) / GIB == pytest.approx(whole, rel=1e-9)
        mine = predicted_bytes(shape, tokens, 4096, 512, 512)
        published = (peak_gib("segmented", tokens) - shape.weights_gib) * GIB
        assert mine + SEGMENT_BYTES - shape.carried_bytes(512) == pytest.approx(published, rel=1e-9)
        assert shape.pool_bytes * pool_entries(tokens) == 32 * KIB * tokens


@pytest.mark.parametrize("shape", [TINY, GROUPED])
def test_one_segment_is_full_attention(shape: Model) -> None:
    model = Weights.random(shape, dtype="float64")
    tokens = prompt(shape, 48)
    assert torch.allclose(
        prefill_segmented(model, tokens, 64, 16, 16), prefill_full(model, tokens), rtol=1e-6
    )


def test_two_segments_by_hand() -> None:
    """Of a model of one layer: what each token sees is written out, and attention taken with an explicit mask."""
    shape = TINY.__class__(0.0, 0.0, 2 * HEAD_DIM, 96, 61, 2, 1, layers=1)
    model, tokens = Weights.random(shape, dtype="float64"), prompt(shape, 32)
    layer, tail = model.layers[0], 5
    x = torch.nn.functional.rms_norm(model.embedding[tokens], (shape.width,))
    q, k, v = ((x @ m).view(32, 2, HEAD_DIM).transpose(0, 1) for m in layer[:3])
    outs = []
    for head in range(2):
        before = slice(16 - tail, 16) if head == 0 else slice(0, 0)
        keys = torch.cat(
            [rotated(k[head : head + 1, before], 0), rotated(k[head : head + 1, 16:], PREFIX)], dim=1
        )[0]
        values = torch.cat([v[head, before], v[head, 16:]])
        scores = rotated(q[head : head + 1, 16:], PREFIX)[0] @ keys.T / HEAD_DIM**0.5
        ahead = torch.ones_like(scores, dtype=torch.bool).triu(scores.shape[1] - 16 + 1)
        outs.append(scores.masked_fill(ahead, -torch.inf).softmax(-1) @ values)
    residual = model.embedding[tokens[16:]] + torch.cat(outs, dim=-1) @ layer.output
    y = torch.nn.functional.rms_norm(residual, (shape.width,))
    residual = residual + (torch.nn.functional.silu(y @ layer.gate) * (y @ layer.up)) @ layer.down
    logits = torch.nn.functional.rms_norm(residual, (shape.width,))[-1] @ model.head
    got = prefill_segmented(model, tokens, 16, tail, 0)
    assert torch.allclose(got, logits.float(), rtol=1e-5)


def test_what_is_retrieved() -> None:
    """Planted keys are found, with their neighbours; the rest are the earliest tokens."""
    keys = torch.zeros(2, 400, HEAD_DIM)
    keys[0, 200, 0] = keys[1, 300, 0] = 10.0
    queries = torch.zeros(2, 64, HEAD_DIM)
    queries[..., 0] = 1.0
    chosen = choose(queries, keys, 8)
    assert chosen[0].tolist() == list(range(197, 205)) and chosen[1].tolist() == list(range(297, 305))
    more = choose(queries, keys, 128)
    assert more.shape == (2, 128) and set(range(197, 205)) <= set(more[0].tolist())
    assert (more.diff(dim=1) > 0).all()
    assert choose(queries, keys[:, :50], 128).tolist() == [list(range(50))] * 2
    assert pooled(queries).shape == (2, 16, HEAD_DIM)  # 15 windows and the latest


def test_the_pool_doubles_and_is_read_only() -> None:
    model = Weights.random(TINY, dtype="float64")
    pool, kept = Pool(model, 16), []
    carried = None
    for part in prompt(TINY, 96).split(24):
        with torch.no_grad():
            done = run_segment(model, part, carried, pool, 8)
            carried = carry(model, done, 8, pool)
        kept.append(done.keys[0][1:])
    assert pool.tokens == 96 and pool.keys[0].shape == (1, 128, HEAD_DIM)
    assert torch.equal(pool.keys[0][:, :96], torch.cat(kept, dim=1))
    assert carried is not None and carried.keys[0].shape == (1, 8, HEAD_DIM)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_truncated_backpropagation_is_the_exact_gradient_of_the_truncated_objective(depth: int) -> None:
    """In float64, four segments with retrieval: no more than rounding apart, and not the gradient of another depth."""
    deep = TINY.__class__(
        0.0, 0.0, 2 * HEAD_DIM, 96, 61, 2, 1, layers=4
    )  # a state reaches one layer more a segment
    model, tokens = Weights.random(deep, dtype="float64"), prompt(deep, 64, seed=1)
    for one in model.tensors():
        one.requires_grad_(True)
    total = sum(segment_losses(model, tokens, 16, 8, 8, depth))
    exact = torch.autograd.grad(total, model.tensors())
    ours = truncated_gradients(model, tokens, 16, 8, 8, depth)
    far = max(float((a - b).abs().max()) for a, b in zip(exact, ours, strict=True))
    size = max(float(a.abs().max()) for a in exact)
    assert far < 1e-13 * max(size, 1.0)
    other = truncated_gradients(model, tokens, 16, 8, 8, depth + 1)
    assert max(float((a - b).abs().max()) for a, b in zip(exact, other, strict=True)) > 1e-6 * size


def test_losses_are_those_of_inference_whatever_the_depth() -> None:
    """Training and inference have one objective: the depth cuts gradients and changes no loss."""
    model, tokens = Weights.random(TINY, dtype="float64"), prompt(TINY, 64)
    found = [[float(x) for x in segment_losses(model, tokens, 16, 8, 8, depth)] for depth in (0, 1, 3)]
    assert found[0] == pytest.approx(found[1], rel=1e-12) and found[0] == pytest.approx(found[2], rel=1e-12)


def test_what_is_retrieved_changes_the_output_and_gets_no_gradient() -> None:
    model, tokens = Weights.random(TINY, dtype="float64"), prompt(TINY, 32)
    pool = Pool(model, 16)
    with torch.no_grad():
        carried = carry(model, run_segment(model, tokens[:16]), 8, pool)
    for buffer in (*pool.keys, *pool.values):
        buffer.requires_grad_(True)
    for one in model.tensors():
        one.requires_grad_(True)
    held = [buffer.detach().clone() for buffer in pool.values]
    loss = run_segment(model, tokens[16:], carried, pool, 8).hidden.square().sum() * 0.0
    hidden = run_segment(model, tokens[16:], carried, pool, 8).hidden
    loss = loss + (hidden @ model.head).logsumexp(-1).sum()
    loss.backward()
    assert all(buffer.grad is None or not buffer.grad.any() for buffer in (*pool.keys, *pool.values))
    assert model.head.grad is not None and model.head.grad.any()
    with torch.no_grad():
        for buffer, old in zip(pool.values, held, strict=True):
            buffer.copy_(old + 1.0)
        other = run_segment(model, tokens[16:], carried, pool, 8).hidden
    assert not torch.allclose(other, hidden)


def test_wrong_input_is_named(weights: Weights) -> None:
    for arguments in ((0, 8, 8), (64, 65, 8), (64, 8, 600)):
        with pytest.raises(InvalidArgument, match="segment="):
            prefill_segmented(weights, prompt(SMALL, 64), *arguments)


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match="train"):
        Weights.random(TINY)


def test_shapes_of_the_environment_are_counted_by_the_reference() -> None:
    """Parameters of the layers and of the head, as the law of time has them."""
    shape = MODELS["llama-2-7b"]
    kv = shape.kv_heads * HEAD_DIM
    layer = 2 * shape.width**2 + 2 * shape.width * kv + 3 * shape.width * shape.ff
    assert np.isclose(shape.layers * layer + shape.width * shape.vocabulary, shape.parameters, rtol=1e-3)
