"""The measuring of a draft-target pair, on tiny models."""

import copy
import io
import itertools
import json
import lzma

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import draft_target as dt  # noqa: E402
from draft_pair import models  # noqa: E402


def tiny(seed: int, layers: int = 2) -> models.Decoder:
    """A random model, with weights so large that its choices differ from token to token."""
    torch.manual_seed(seed)
    model = models.Decoder(
        models.Shape(layers=layers, width=16, heads=2, dropout=0.0, peak_rate=1e-2), vocabulary=5
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.6)
    return model.eval()


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that spin wait for whoever else uses the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def clock(monkeypatch):
    """Time goes on by a tenth of a second whenever it is asked for, so that a training has as many steps everywhere."""
    ticks = itertools.count()
    monkeypatch.setattr(models.time, "monotonic", lambda: 0.1 * next(ticks))


def similar(model: models.Decoder, noise: float) -> models.Decoder:
    """The same model with disturbed weights: it often says the same."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight += noise * torch.randn(weight.shape, generator=generator)
    return other


def corpus_file(path, vocabulary: int = 40) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{domain}_{part}": rng.integers(0, vocabulary, 3000).astype(np.uint16)
        for domain in dt.DOMAINS
        for part in ("train", "held")
    }
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps({"vocabulary": vocabulary, "corpora": {}})), **arrays)
    path.write_bytes(lzma.compress(buffer.getvalue()))


def test_a_code_is_within_its_stated_error_of_the_deficit():
    deficit = np.geomspace(1e-3, dt.COARSEST, 1000)
    decoded = -np.log(dt.decode_confidence(dt.encode_confidence(np.exp(-deficit))))
    assert np.abs(decoded / deficit - 1.0).max() < 0.025
    assert dt.decode_confidence(dt.encode_confidence(np.array([1.0])))[0] == 1.0
    assert dt.encode_confidence(np.array([0.0]))[0] == 255


def test_a_cache_changes_nothing():
    model = tiny(0)
    tokens = torch.randint(5, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, _ = model(tokens)
        first, cache = model(tokens[:, :4])
        second, cache = model(tokens[:, 4:9], cache)
        third, _ = model(tokens[:, 9:10], cache)
    torch.testing.assert_close(torch.cat([first, second, third], dim=1), whole[:, :10], rtol=1e-4, atol=1e-4)


def test_a_later_token_does_not_change_what_was_said_before_it():
    model = tiny(1)
    tokens = torch.randint(5, (1, 10), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 5
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0][:, :7], model(changed)[0][:, :7])


@pytest.mark.parametrize("block", [1, 3, 8])
def test_the_tables_tell_what_speculative_decoding_does(block):
    target = tiny(0)
    draft = similar(target, 0.1)
    prompts = torch.randint(5, (6, 9), generator=torch.Generator().manual_seed(2))
    path = dt.continue_prompts(target, prompts, 40, 0.0, seed=0)
    drafted = dt.draft_along(draft, prompts, path, steps=2)
    assert 0.2 < drafted.accepted.mean() < 0.95
    for s in range(6):
        text, blocks = dt.speculate(target, draft, prompts[s], 40, block)
        assert text == path[s].tolist()
        told = dt.replay(drafted.accepted[s], block)
        assert len(blocks) == len(told)
        assert blocks[:-1] == told[:-1]


def test_after_a_rejected_token_the_draft_goes_on_from_its_own_text():
    target, draft = tiny(3), tiny(4)
    prompts = torch.randint(5, (4, 6), generator=torch.Generator().manual_seed(3))
    path = dt.continue_prompts(target, prompts, 12, 1.0, seed=0)
    drafted = dt.draft_along(draft, prompts, path, steps=3)
    assert drafted.accepted.any() and not drafted.accepted.all()
    for s, i in np.ndindex(4, 12):
        context = [*prompts[s].tolist(), *path[s, :i].tolist()]
        expected = []
        for _ in range(4):
            with torch.no_grad():
                p, token = torch.softmax(draft(torch.tensor([context]))[0][0, -1], dim=-1).max(dim=-1)
            expected.append(float(p))
            context.append(int(token))
        assert drafted.confidence[s, i] == pytest.approx(expected[0], rel=1e-4)
        if drafted.accepted[s, i]:
            assert np.isnan(drafted.beyond[s, i]).all()
        else:
            assert drafted.beyond[s, i] == pytest.approx(expected[1:], rel=1e-4)


def test_replay_counts_accepted_tokens_and_skips_the_targets_own():
    assert dt.replay(np.array([1, 1, 0, 1, 0, 0, 1], bool), block=2) == [2, 1, 0, 1]


@pytest.mark.slow
def test_training_learns(clock):
    tokens = {f"{d}_{part}": torch.arange(4000) % 7 for d in dt.DOMAINS for part in ("train", "held")}
    plan = models.Plan(0, 0, 8, 32, 2, 2, 8, 8, 2, 0)
    torch.manual_seed(0)
    shape = models.Shape(layers=1, width=32, heads=2, dropout=0.0, peak_rate=1e-2)
    model = models.Decoder(shape, vocabulary=7)
    before = models.held_out_loss(model, tokens, plan)["code"]
    told = models.train("toy", model, shape, tokens, 6.0, plan)
    assert told["held_out_loss"]["code"] < 0.5 * before


def test_where_a_text_begins_to_repeat_itself():
    path = np.stack([np.arange(40) % 7, np.arange(40), np.r_[np.arange(20), np.arange(20)]])
    # The run 0 1 2 3 4 5 6 0 ends at positions 7 and 14; the run 0..7 of the last row at 7 and 27.
    assert dt.fresh_positions(path).tolist() == [14, 40, 27]


@pytest.mark.slow
def test_quick_writes_tables_that_fit_together(tmp_path, monkeypatch, clock):
    corpus_file(tmp_path / "corpus.xz")
    argv = ["--corpus", str(tmp_path / "corpus.xz"), "--device", "cpu", "--quick", "--out", str(tmp_path)]
    table = tmp_path / "draft_target.npz"
    dt.main(argv)
    assert json.loads((tmp_path / "meta.json").read_text())["measured"]["streams_kept"] == 20
    limit = table.stat().st_size - 60
    monkeypatch.setattr(dt, "LARGEST_TABLE_BYTES", limit)
    dt.main(argv)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert table.stat().st_size <= limit
    with np.load(table) as stored:
        streams, positions = stored["confidence"].shape
        accepted = np.unpackbits(stored["accepted"], axis=1, count=positions)
        assert (
            streams == meta["measured"]["streams_kept"] == len(stored["domain"]) == len(stored["temperature"])
        )
        assert positions == meta["measured"]["positions"]
        assert stored["beyond"].shape == ((accepted == 0).sum(), meta["measured"]["beyond_steps"])
        # Streams were left out to keep the file small, some of every group stayed.
        assert streams < 2 * (6 + 4)
        assert len(np.unique(np.stack([stored["domain"], stored["temperature"]]), axis=1).T) == 4
    same, checked = meta["measured"]["check"]["tokens"]
    assert checked > 0 and same >= 0.9 * checked
    assert meta["trained"]["draft"]["parameters"] < meta["trained"]["target"]["parameters"]


@pytest.mark.parametrize("argv", [[], ["--corpus", "x", "--minutes", "0"]])
def test_what_is_missing_or_wrong_is_said(argv, capsys):
    with pytest.raises(SystemExit):
        dt.main(argv)
    assert "--corpus" in capsys.readouterr().err if not argv else "--minutes" in capsys.readouterr().err
