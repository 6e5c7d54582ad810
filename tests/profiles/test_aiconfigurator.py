"""Profiles from the tables of `aiconfigurator-core`; with the package where it is installed."""

import importlib.util
import sys
from typing import Any

import pytest

from llmgym import profiles
from llmgym.errors import InvalidArgument, MissingExtra, ProfileError, UnknownName
from llmgym.profiles import aiconfigurator, cost

INSTALLED = importlib.util.find_spec("aiconfigurator_core") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="aiconfigurator-core is not installed")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "aiconfigurator_core" else find(name)
    )
    with pytest.raises(MissingExtra, match=r"llmgym\[aiconfigurator\]"):
        aiconfigurator.from_aiconfigurator("h100_sxm", "llama-3.1-8b")


def test_missing_corners_keep_their_slopes() -> None:
    import numpy as np

    whole = np.add.outer(np.arange(4.0), 2 * np.arange(5.0))
    part = whole.copy()
    part[2:, 3:] = np.nan
    part[1, 4] = np.nan
    aiconfigurator._fill(part)
    np.testing.assert_allclose(part, whole)


@needs_package
@pytest.mark.parametrize(
    ("system", "model", "tp", "name"),
    [
        ("h100_sxm", "llama-3.1-8b", 1, "h100/llama-3.1-8b"),
        ("h200_sxm", "qwen2.5-14b", 1, "h200/qwen2.5-14b"),
        ("b200_sxm", "llama-2-70b", 4, "b200/llama-2-70b-tp4"),
        ("a100_sxm", "llama-3.1-8b", 1, "a100/llama-3.1-8b"),
    ],
)
def test_interpolated_tables_agree_with_the_laws_fitted_to_them(
    system: str, model: str, tp: int, name: str
) -> None:
    found = aiconfigurator.from_aiconfigurator(system, model, tp)
    assert found.provenance.method == "measured" and "aiconfigurator-core" in found.provenance.versions
    assert found.kv_bytes_per_token == profiles.load(name).kv_bytes_per_token
    tables, laws = found.step_cost(), profiles.load(name).step_cost()

    def step(of: Any, chunk: int, context: int, decodes: int, kv: int) -> float:
        attention = cost.prefill_attention_s(of, chunk, context)
        return cost.step_time_s(of, chunk, attention, decodes, kv, decodes + (chunk > 0), 0)

    for batch in (
        (0, 0, 1, 1000),
        (0, 0, 32, 32000),
        (0, 0, 128, 128000),
        (512, 0, 0, 0),
        (2048, 8192, 0, 0),
        (2048, 0, 64, 64000),
    ):
        assert step(tables, *batch) == pytest.approx(step(laws, *batch), rel=0.16), batch


@needs_package
def test_wrong_input() -> None:
    make = aiconfigurator.from_aiconfigurator
    with pytest.raises(UnknownName, match="unknown system 'h100'"):
        make("h100", "llama-3.1-8b")
    with pytest.raises(UnknownName, match="unknown model"):
        make("h100_sxm", "gpt-2")
    with pytest.raises(UnknownName, match="unknown backend 'tgi'"):
        make("h100_sxm", "llama-3.1-8b", backend="tgi")
    with pytest.raises(InvalidArgument, match="tensor_parallel=3"):
        make("h100_sxm", "llama-3.1-8b", 3)
    with pytest.raises(ProfileError, match="no context_attention with 28 query and 4 key heads"):
        make("l40s", "qwen2.5-7b")
