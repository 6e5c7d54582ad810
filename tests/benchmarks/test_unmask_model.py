"""The measuring of a masked-diffusion model, on tiny ones, and that the package reads what it writes."""

import io
import itertools
import json
import lzma

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import unmask_model as um  # noqa: E402
from masked_model import models  # noqa: E402

from llmgym.envs.unmask import tables  # noqa: E402
from llmgym.envs.unmask.env import UnmaskEnv  # noqa: E402
from llmgym.envs.unmask.excerpts import estimate  # noqa: E402
from llmgym.errors import InvalidArgument, UnknownName  # noqa: E402

PLAN = models.Plan(0, 4, 24, blocks=5, block=6, prompt=7, after=4, checked=4, sets=2)


def tiny(seed: int, vocabulary: int = 9) -> models.MaskedModel:
    """A random model, with weights so large that what it says differs from token to token."""
    torch.manual_seed(seed)
    model = models.MaskedModel(um.QUICK_DENOISER._replace(width=16), vocabulary)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.6)
    return model.eval()


def some_text(count: int, length: int, vocabulary: int = 9, seed: int = 0):
    return torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


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


def corpus_file(path, vocabulary: int = 40) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{domain}_{part}": rng.integers(0, vocabulary, 3000).astype(np.uint16)
        for domain in um.DOMAINS
        for part in ("train", "held")
    }
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps({"vocabulary": vocabulary, "corpora": {}})), **arrays)
    path.write_bytes(lzma.compress(buffer.getvalue()))


def test_a_code_is_within_its_stated_error():
    x = np.geomspace(1e-2, um.COARSEST, 500)
    assert np.abs(tables.decode(um.encode(x), um.FINEST, um.COARSEST) / x - 1.0).max() < 0.025
    assert tables.decode(um.encode(np.zeros(1)), um.FINEST, um.COARSEST)[0] == 0.0
    code = np.random.default_rng(0).integers(0, 256, (3, 5, 4)).astype(np.uint8)
    assert (tables.undo_difference(um.difference(code)) == code).all()
    signed = np.concatenate([-x, [0.0], x])
    found = tables.decode_signed(um.encode_signed(signed), um.FINEST_SIGNED, um.COARSEST_SIGNED)
    assert (np.abs(found - signed) <= 0.035 * (np.abs(signed) + um.FINEST_SIGNED)).all()
    assert um.encode_signed(np.array([-1e9, 0.0, 1e9])).tolist() == [1, 128, 255]


def test_what_is_asked_is_what_the_model_says():
    model, text = tiny(0), some_text(3, 13)
    known = torch.zeros(3, 6, dtype=torch.bool)
    known[:, 2] = True
    said = um.ask(model, text, known, PLAN)
    for n in range(3):
        shown = text[n].clone()
        shown[[7, 8, 10, 11, 12]] = model.mask
        with torch.no_grad():
            law = torch.softmax(model(torch.cat([shown, torch.full((4,), model.mask)])[None])[0, 7:13], -1)
        for i in (0, 1, 3, 4, 5):
            ordered = law[i].sort(descending=True).values
            entropy = -(law[i] * law[i].log()).sum()
            expected = [law[i, text[n, 7 + i]].log(), ordered[0].log(), entropy, ordered[0] - ordered[1]]
            assert said.values[n, i] == pytest.approx([float(x) for x in expected], abs=1e-4)
            assert said.right[n, i] == (int(law[i].argmax()) == int(text[n, 7 + i]))
        assert said.values[n, 2].tolist() == [0.0, 0.0, 0.0, 1.0] and said.right[n, 2]


def test_a_masked_token_is_not_seen():
    model, text = tiny(1), some_text(2, 13)
    other = text.clone()
    other[:, 9] = (other[:, 9] + 1) % 9
    none = torch.zeros(2, 6, dtype=torch.bool)
    first, second = um.ask(model, text, none, PLAN), um.ask(model, other, none, PLAN)
    assert np.array_equal(first.values[..., 1:], second.values[..., 1:])


def test_the_rule_of_the_script_is_that_of_the_environment():
    pairs = um.ask_pairs(tiny(2), some_text(4, 13), PLAN).values
    known = np.random.default_rng(1).random((4, 6)) < 0.5
    known[:, 0], known[:, 1] = True, False
    found = um.effects(pairs, known)
    shares = np.array([0.3, 0.0, 1.0, 0.5])
    by_script = found.base + found.strongest + shares * found.others
    for n, i, q in np.ndindex(4, 6, 4):
        if not known[n, i]:
            ours = estimate(pairs[n], q, shares[q], (~known[n]).astype(np.int8), i)
            assert ours == pytest.approx(by_script[n, i, q], abs=1e-5)


def test_shares_that_made_the_effects_are_found(monkeypatch):
    """A model of which effects add up by known shares: the fit returns them, and the rule has no error."""
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(40, 7, 6, 4)).astype(np.float32)
    pairs[..., :2] = -np.abs(pairs[..., :2]) - 9.0
    pairs[..., 2] = 1.0 + 0.02 * pairs[..., 2]
    pairs[..., 3] = 0.5 + 0.02 * pairs[..., 3]
    shares = np.array([0.2, 0.6, 0.4, 1.0], np.float32)

    def ask(model, text, known, plan):
        found = um.effects(pairs, known.numpy())
        said = found.base + found.strongest + shares * found.others
        return um.Said(said, known.numpy(), np.zeros(known.shape, np.int64))

    monkeypatch.setattr(um, "ask", ask)
    told = um.combination(tiny(0), some_text(40, 13), pairs, PLAN)
    assert list(told["shares"].values()) == pytest.approx(shares.tolist(), abs=1e-3)
    assert max(told["errors"]["rule"].values()) < 1e-3 < 0.1 < told["errors"]["nothing"]["log_true"]


@pytest.mark.slow
def test_training_learns(clock):
    tokens = {f"{d}_{part}": torch.arange(4000) % 7 for d in um.DOMAINS for part in ("train", "held")}
    plan = PLAN._replace(train_s=8.0, batch=8)
    torch.manual_seed(0)
    model = models.MaskedModel(um.QUICK_DENOISER, 7)
    before = models.held_out_loss(model, tokens, plan)["code"]
    told = models.train(model, um.QUICK_DENOISER, tokens, plan)
    assert told["held_out_loss"]["code"] < 0.7 * before


@pytest.mark.slow
def test_quick_writes_a_table_that_the_environment_plays(tmp_path, monkeypatch, clock):
    corpus_file(tmp_path / "corpus.xz")
    argv = ["--corpus", str(tmp_path / "corpus.xz"), "--device", "cpu", "--quick", "--out", str(tmp_path)]
    um.main(argv)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["measured"]["blocks_kept"] == 24 and meta["format"] == tables.FORMAT
    assert set(meta["measured"]["combination"]["errors"]) == {"nothing", "strongest", "rule"}
    size = (tmp_path / "denoiser.npz").stat().st_size
    monkeypatch.setattr(um, "LARGEST_TABLE_BYTES", size - 60)
    um.main(argv)
    assert json.loads((tmp_path / "meta.json").read_text())["measured"]["blocks_kept"] < 24
    for domain in um.DOMAINS:
        excerpts = tables.load_folder(tmp_path, domain)
        assert excerpts.block == 8 and excerpts.vocabulary == 40 and excerpts.about["script"]
        env = UnmaskEnv(text=excerpts, mode="score", block=8, tokens=16, action="macro")
        env.reset(seed=0)
        ended, total = False, 0.0
        while not ended:
            _, reward, ended, _, info = env.step(0)
            total += reward
        assert info["metrics"]["nfe"] == 6 and total == pytest.approx(
            env.simulation.expected_return(info["metrics"])
        )
    with pytest.raises(UnknownName, match="poetry"):
        tables.load_folder(tmp_path, "poetry")
    (tmp_path / "denoiser.npz").unlink()
    with pytest.raises(InvalidArgument, match=r"denoiser\.npz is missing"):
        tables.load_folder(tmp_path, "code")


def test_the_table_holds_what_was_said(tmp_path, monkeypatch):
    """Values come back within the error of their codes."""
    said = um.ask_pairs(tiny(3), some_text(6, 13), PLAN)
    meta = {
        "format": um.FORMAT,
        "measured": {
            "vocabulary": 9,
            "coding": {
                "finest": um.FINEST,
                "coarsest": um.COARSEST,
                "finest_signed": um.FINEST_SIGNED,
                "coarsest_signed": um.COARSEST_SIGNED,
            },
            "combination": {"shares": dict.fromkeys(um.QUANTITIES, 0.5)},
        },
    }
    domain = np.array([0, 0, 0, 1, 1, 1], np.uint8)
    damage = np.where(said.right, 0.0, np.random.default_rng(0).normal(0.0, 9.0, said.right.shape))
    data = um.pack(said, damage.astype(np.float32), domain, np.ones(6, bool))
    excerpts = tables.read(data, meta, "x", 1)
    assert np.array_equal(excerpts.right, said.right[3:])
    assert excerpts.values == pytest.approx(said.values[3:], rel=0.03, abs=0.02)
    assert excerpts.damage == pytest.approx(np.clip(damage[3:], -32.0, 32.0), rel=0.04)
    with pytest.raises(InvalidArgument, match="domain"):
        tables.read(data, meta, "x", 2)
    with pytest.raises(InvalidArgument, match="format"):
        tables.read(data, meta | {"format": 99}, "x", 1)


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        ([], "--corpus"),
        (["--corpus", "x", "--minutes", "0"], "--minutes"),
        (["--corpus", "x", "--block", "2"], "--block"),
    ],
)
def test_what_is_missing_or_wrong_is_said(argv, what, capsys):
    with pytest.raises(SystemExit):
        um.main(argv)
    assert what in capsys.readouterr().err
