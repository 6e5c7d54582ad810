"""The judge of a masked-diffusion model, and rules replayed with the model itself, on tiny random ones."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from draft_pair.models import QUICK_DRAFT, Decoder  # noqa: E402
from masked_model import replay, scorer  # noqa: E402
from masked_model.ask import Said, ask  # noqa: E402
from masked_model.models import QUICK_DENOISER, MaskedModel, Plan  # noqa: E402

PLAN = Plan(0, 4, 24, blocks=5, block=8, prompt=7, after=4, checked=4, sets=3)
VOCABULARY = 9


def loud(model):
    """Weights so large that what the model says differs from token to token."""
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
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def judge() -> Decoder:
    return loud(Decoder(QUICK_DRAFT._replace(width=16), VOCABULARY))


def denoiser() -> MaskedModel:
    return loud(MaskedModel(QUICK_DENOISER._replace(width=16), VOCABULARY))


def some_text(count: int = 4):
    return torch.randint(VOCABULARY, (count, 19), generator=torch.Generator().manual_seed(0))


def nats_of(model: Decoder, text) -> float:
    """Nats of all tokens after the prompt, token by token, nothing cached."""
    total = 0.0
    for end in range(PLAN.prompt, len(text)):
        law = torch.log_softmax(model(text[None, :end])[0][0, -1].double(), -1)
        total -= float(law[text[end]])
    return total


def with_block(text, block):
    return torch.cat([text[: PLAN.prompt], block, text[PLAN.prompt + PLAN.block :]])


@torch.no_grad()
def test_a_judge_that_remembers_says_what_one_says_that_reads_all(monkeypatch):
    monkeypatch.setattr(scorer, "BATCH", 3)
    model, text = judge(), some_text()
    of = torch.tensor([0, 0, 1, 1, 3])
    block = torch.randint(VOCABULARY, (5, PLAN.block), generator=torch.Generator().manual_seed(1))
    expected = [nats_of(model, with_block(text[n], b)) for n, b in zip(of, block, strict=True)]
    assert scorer.nats(model, text, scorer.Written(of, block), PLAN) == pytest.approx(expected, abs=1e-3)
    rise = [x - nats_of(model, text[n]) for x, n in zip(expected, of, strict=True)]
    assert scorer.rise(model, text, scorer.Written(of, block), PLAN) == pytest.approx(rise, abs=2e-3)


@torch.no_grad()
def test_damage_is_that_of_one_wrong_token_and_nothing_where_it_is_right():
    model, text = judge(), some_text()
    best = np.random.default_rng(0).integers(0, VOCABULARY, (4, 3, PLAN.block))
    truth = text[:, PLAN.prompt : PLAN.prompt + PLAN.block]
    right = best == truth.numpy()[:, None]
    found = scorer.damages(model, text, best, right, PLAN)
    assert right.any() and (found[right] == 0.0).all()
    for n, row, i in ((0, 0, 0), (1, 2, 7), (3, 1, 4)):
        block = truth[n].clone()
        block[i] = int(best[n, row, i])
        rise = nats_of(model, with_block(text[n], block)) - nats_of(model, text[n])
        assert found[n, row, i] == pytest.approx(rise, abs=2e-3)


def test_damages_of_a_judge_without_memory_add_up():
    """A judge whose law never changes: several wrong tokens cost the sum of what each costs."""
    model, text = judge(), some_text(12)
    with torch.no_grad():
        for block in model.blocks:
            block.out.weight.zero_(), block.down.weight.zero_()
        model.embed.weight[:] = torch.randn(VOCABULARY, 1) * torch.ones(16)
        model.embed.weight.abs_()
    truth = text[:, PLAN.prompt : PLAN.prompt + PLAN.block].numpy()
    best = np.random.default_rng(0).integers(0, VOCABULARY, truth.shape)
    right = best == truth
    damage = scorer.damages(model, text, best[:, None], right[:, None], PLAN)[:, 0]
    rows = scorer.additivity(model, text, best, right, damage, PLAN)
    assert [row["wrong_tokens"] for row in rows] == [[2, 2], [3, 4], [5, 8]]
    assert sum(row["sets"] for row in rows) == 12 * PLAN.sets
    for row in rows:
        assert row["rms_difference"] < 1e-3 and row["correlation"] > 0.999
        assert row["sum_mean"] == pytest.approx(row["at_once_mean"], abs=1e-3)


def test_rules_choose_what_they_should():
    values = np.zeros((1, 8, 4), np.float32)
    values[0, :, 1] = np.log([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6])
    values[0, :, 2] = np.log(2.0) * np.array([0.2, 9.0, 0.3, 9.0, 0.6, 9.0, 0.7, 9.0])
    said = Said(values, np.ones((1, 8), bool), np.zeros((1, 8), np.int64))
    order = np.array([[0.7, 0.1, 0.6, 0.2, 0.5, 0.3, 0.4, 0.8]])
    none = np.zeros((1, 8), bool)

    def places(rule: str, call: int = 0, known=none) -> list[int]:
        return np.flatnonzero(replay.chosen(rule, said, known, call, order)[0]).tolist()

    assert places("one") == [1] and places("all") == list(range(8))
    assert places("dus") == [0, 4] and places("left-to-right") == [0, 1, 2]
    assert places("confidence") == [1, 3, 5] and places("random-fixed") == [0, 2, 7]
    assert places("random-rising") == [0, 7]
    # budgets of 1 bit: 0, 0.2 and 0.5 are spent before the first three, 1.1 before the fourth
    assert places("eb") == [0, 2, 4]
    known = none.copy()
    known[0, [0, 4]] = True
    assert places("dus", 1, known) == [2, 6] and places("eb", 1, known) == [2, 6]


def test_one_position_a_call_loses_nothing_and_a_pair_what_one_tells_of_the_other():
    model, text = denoiser(), some_text()
    one = replay.reveal(model, judge(), text, "one", PLAN, forced=True)
    assert (one["calls"] == 8).all() and one["gap_nats"] == pytest.approx(0.0, abs=1e-4)
    dus = replay.reveal(model, judge(), text, "dus", PLAN, forced=True)
    steps, gap, known = [[0, 4], [2, 6], [1, 3, 5, 7]], np.zeros(4), torch.zeros(4, 8, dtype=torch.bool)
    for level in steps:
        before = ask(model, text, known, PLAN).values[..., 0]
        for i in level:
            gap += ask(model, text, known, PLAN).values[:, i, 0] - before[:, i]
            known[:, i] = True
    assert (dus["calls"] == 3).all() and dus["gap_nats"] == pytest.approx(gap, abs=1e-4)


def test_everything_at_once_writes_the_same_with_true_tokens_and_with_its_own():
    model, text, judged = denoiser(), some_text(), judge()
    true, own = (replay.reveal(model, judged, text, "all", PLAN, forced=f) for f in (True, False))
    assert np.array_equal(true["scorer_nats"], own["scorer_nats"]) and (own["gap_nats"] == 0).all()
    told = replay.replays(model, judged, text, PLAN)
    assert set(told) == {"true tokens", "own tokens"} and set(told["own tokens"]) == set(replay.RULES)
    assert "gap_nats" in told["true tokens"]["dus"] and "gap_nats" not in told["own tokens"]["dus"]
