"""Rules as data: the catalogue, changed numbers, and what is refused."""

import pytest

from llmgym.errors import InvalidArgument, UnknownName
from llmgym.serving.overflow import CLEAR, PAUSE, RECOMPUTE, VICTIMS
from llmgym.serving.queue import BY_AREA, BY_ARRIVAL, BY_OUTPUT
from llmgym.serving.rules import CATALOGUE, CHECKS, CLASS_BUDGET, FUTURE, WHOLE_PROMPT, Rule, pack, resolve


def test_names_of_the_catalogue_resolve_to_themselves() -> None:
    assert resolve(tuple(CATALOGUE)) == tuple(CATALOGUE.values())
    assert all(name == rule.name for name, rule in CATALOGUE.items())


def test_numbers_can_be_changed_in_the_name() -> None:
    (rule,) = resolve(("vllm:watermark=0.05,most=3",))
    assert (rule.name, rule.watermark, rule.most) == ("vllm:watermark=0.05,most=3", 0.05, 3)
    assert rule.check == CATALOGUE["vllm"].check and CATALOGUE["vllm"].watermark == 0.02


def test_rule_objects_and_names_mix() -> None:
    own = Rule("mine", order="smallest-area", skip=True)
    assert resolve((own, "mc-sf")) == (own, CATALOGUE["mc-sf"])


@pytest.mark.parametrize(
    ("rules", "error", "words"),
    [
        (("vlm",), UnknownName, ("rule", "'vlm'", "Did you mean 'vllm'?", "wc-fcfs")),
        (("vllm:w=0.1",), UnknownName, ("number of rule 'vllm'", "'w'", "watermark", "most")),
        # numbers that would make no difference
        (("vllm:headroom=0.1",), UnknownName, ("number of rule 'vllm'", "'headroom'", "watermark")),
        (("wc-fcfs:watermark=0.3",), UnknownName, ("number of rule 'wc-fcfs'", "'watermark'", "most")),
        (("mc-sf:clear_probability=0.3",), UnknownName, ("number of rule 'mc-sf'", "'clear_probability'")),
        (("alpha-clearing:watermark=0.3",), UnknownName, ("'watermark'", "headroom, most")),
        (("vllm:",), UnknownName, ("number of rule 'vllm'", "''")),
        (("vllm:most=3,",), UnknownName, ("number of rule 'vllm'", "''")),
        (("vllm:watermark=much",), InvalidArgument, ("'much'", "not a number")),
        (("vllm:watermark",), InvalidArgument, ("vllm:watermark", "not a number")),
        (("vllm:most=1.5",), InvalidArgument, ("'1.5'", "not a number")),
        (("vllm:watermark=1.0",), InvalidArgument, ("watermark=1.0", "0 <= watermark < 1")),
        (("vllm:watermark=-0.1",), InvalidArgument, ("watermark=-0.1", "0 <= watermark < 1")),
        (("vllm:watermark=nan",), InvalidArgument, ("watermark=nan", "0 <= watermark < 1")),
        (("alpha-clearing:headroom=1",), InvalidArgument, ("headroom=1.0", "0 <= headroom < 1")),
        (("beta-clearing:clear_probability=0",), InvalidArgument, ("clear_probability=0.0", "0.001 to 1")),
        (("beta-clearing:clear_probability=1.5",), InvalidArgument, ("clear_probability=1.5", "0.001 to 1")),
        ((), InvalidArgument, ("rules=[]", "at least one")),
        (("vllm", "vllm"), InvalidArgument, ("rules=", "each once")),
        ((Rule("vllm"), "vllm"), InvalidArgument, ("rules=", "each once")),
    ],
)
def test_what_resolve_refuses(rules: tuple[str, ...], error: type[Exception], words: tuple[str, ...]) -> None:
    with pytest.raises(error) as raised:
        resolve(rules)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("argument", "value", "known"),
    [
        ("order", "longest", "shortest-output"),
        ("check", "hope", "whole-prompt"),
        ("batch", "all", "decode-first"),
    ],
)
def test_what_a_rule_refuses(argument: str, value: str, known: str) -> None:
    with pytest.raises(UnknownName, match=f"{argument} of a rule '{value}'.*{known}"):
        Rule("bad", **{argument: value})
    with pytest.raises(InvalidArgument, match=r"class_budgets=\(1, -1\).*>= 0"):
        Rule("bad", class_budgets=(1, -1))


@pytest.mark.parametrize("most", [0, -1])
def test_a_rule_that_admits_nobody_is_refused(most: int) -> None:
    with pytest.raises(InvalidArgument, match="most"):
        Rule("nobody", most=most)


def test_packed_records() -> None:
    own = Rule("c", check="class-budget", class_budgets=(3, 4))
    rules = resolve(("wc-fcfs", "mc-sf", "vllm:watermark=0.1", "alpha-clearing", own))
    records, budgets, orders = pack(rules, RECOMPUTE, 2, area_per_s=1.0)
    assert orders["kind"].tolist() == [BY_ARRIVAL, BY_OUTPUT] and orders["weight"].tolist() == [0.0, 0.0]
    assert records["row"].tolist() == [0, 1, 0, 0, 0]
    assert records["check"].tolist() == [0, FUTURE, WHOLE_PROMPT, CHECKS["headroom"], CLASS_BUDGET]
    assert records["overflow"].tolist() == [RECOMPUTE, RECOMPUTE, RECOMPUTE, CLEAR, RECOMPUTE]
    assert records["watermark"].tolist() == [0, 0, 0.1, 0, 0] and records["headroom"][3] == 0.2
    assert budgets.tolist() == [[0, 0]] * 4 + [[3, 4]]
    assert pack(resolve(("smallest-area",)), PAUSE, 1, area_per_s=1.0).orders["kind"].tolist() == [BY_AREA]
    with pytest.raises(InvalidArgument, match="rule 'c' has 2 class budgets, the workload has 3 classes"):
        pack(rules, PAUSE, 3, area_per_s=1.0)


def test_a_victim_is_named_like_a_number():
    (rule,) = resolve(("vllm:watermark=0,victim=largest",))
    assert (rule.watermark, rule.victim) == (0.0, "largest")
    with pytest.raises(UnknownName, match="victim of a rule 'eldest'"):
        resolve(("vllm:victim=eldest",))
    with pytest.raises(UnknownName, match="number of rule 'alpha-clearing' 'victim'"):
        resolve(("alpha-clearing:victim=oldest",))


def test_priorities_have_to_be_there():
    for rule in (*resolve(("vllm-priority", "wc-fcfs:victim=worst-priority")), Rule("own", order="priority")):
        with pytest.raises(InvalidArgument, match=f"rule='{rule.name}': it looks at the priorities"):
            pack([rule], RECOMPUTE, 1, area_per_s=1.0)
        assert (
            pack([rule], RECOMPUTE, 1, area_per_s=1.0, priorities=True)[0]["victim"][0]
            == VICTIMS[rule.victim]
        )


def test_objectives_and_prefixes_have_to_be_there():
    (edf, longest) = resolve(("edf", "longest-prefix"))
    with pytest.raises(InvalidArgument, match="rule='edf': it looks at the TTFT objectives"):
        pack([edf], RECOMPUTE, 1, area_per_s=1.0)
    with pytest.raises(InvalidArgument, match="rule='longest-prefix': it looks at cached prefixes"):
        pack([longest], RECOMPUTE, 1, area_per_s=1.0)
    assert len(pack([edf, longest], RECOMPUTE, 1, area_per_s=1.0, objectives=True, prefixes=True).orders) == 2


def test_two_weights_of_one_order_are_two_orders():
    rules = resolve(("area-aging:aging=0.1", "area-aging:aging=0.2", "area-aging"))
    packed = pack(rules, RECOMPUTE, 1, area_per_s=100.0)
    assert packed.orders["weight"].tolist() == [5.0, 10.0, 20.0] and packed.rules["row"].tolist() == [1, 2, 0]
    with pytest.raises(InvalidArgument, match=r"aging \(rule 'slow'\)=-1"):
        Rule("slow", order="aging", aging=-1)


def test_nobody_is_preempted_where_residents_are_paused():
    with pytest.raises(
        InvalidArgument, match="victim='oldest' of rule 'wc-fcfs:victim=oldest': nobody is pre"
    ):
        pack(resolve(("wc-fcfs:victim=oldest",)), PAUSE, 1, area_per_s=1.0)
