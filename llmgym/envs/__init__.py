"""What is decided: one folder a family, and the table of all environments, which importing this package registers."""

from llmgym.core.spec import EnvSpec, env_ids, register, register_installed, spec

__all__ = ["ENVIRONMENTS", "env_ids", "register_all", "scenario_names"]


def _ours(
    name: str,
    folder: str,
    scenarios: str,
    *,
    decision: str,
    source: str,
    docs: str,
    baselines: str = "",
    audit: str = "",
    version: int = 0,
) -> EnvSpec:
    """An environment of this package, whose parts are where all of them have them."""
    home = f"llmgym.envs.{folder}"
    return EnvSpec(
        id=f"llmgym/{name}-v{version}",
        env=f"{home}.env:{name}Env",
        vector_env=f"{home}.env:{name}VectorEnv",
        scenarios=f"llmgym.envs.{scenarios}",
        baselines=f"llmgym.baselines.{baselines or folder}",
        audit=audit and f"llmgym.envs.{audit}",
        cases=f"{home}.cases:CASES",
        decision=decision,
        source=source,
        docs=f"docs/envs/{docs}.md",
    )


ENVIRONMENTS = (
    _ours(
        "KVQueue",
        "kv.queue",
        "kv.queue.scenarios:SCENARIOS",
        decision="which waiting requests enter the batch of an engine whose KV cache is full",
        source="Nie, Si, Zhou, ICML 2026, arXiv 2605.04595",
        docs="kv_queue",
        audit="kv.audit:queue",
    ),
    _ours(
        "KVQueue",
        "kv.queue_v1",
        "kv.queue_v1.scenarios:SCENARIOS",
        decision="which waiting request joins the batch of vLLM's engine, and which running one loses its cache",
        source="Nie, Si, Zhou, ICML 2026, arXiv 2605.04595; vLLM V1",
        docs="kv_queue_v1",
        audit="kv.audit:queue",
        version=1,
    ),
    _ours(
        "KVProvision",
        "kv.provision",
        "kv.provision.scenarios:SCENARIOS",
        decision="how many replicas to run in the next minute",
        source="Nie, Si, Zhou, ICML 2026, arXiv 2605.04595",
        docs="kv_provision",
        audit="kv.audit:provision",
    ),
    _ours(
        "AFDRatio",
        "afd.ratio",
        "afd.ratio.scenarios:SCENARIOS",
        decision="how many attention instances feed one FFN instance",
        source="Song et al., ICML 2026, arXiv 2601.21351",
        docs="afd_ratio",
        audit="afd.audit:ratio",
    ),
    _ours(
        "AFDRefill",
        "afd.refill",
        "afd.refill.scenarios:SCENARIOS",
        decision="which waiting request refills which slot",
        source="Song et al., ICML 2026, arXiv 2601.21351",
        docs="afd_refill",
        audit="afd.audit:refill",
    ),
    _ours(
        "PPDRouting",
        "ppd.routing",
        "ppd.scenarios:SCENARIOS",
        decision="whether a later turn of a conversation prefills on a prefill or on a decode node",
        source="Li et al., ICML 2026, arXiv 2603.13358",
        docs="ppd_routing",
        audit="ppd.audit:cluster",
    ),
    _ours(
        "PPDWeights",
        "ppd.weights",
        "ppd.scenarios:SCENARIOS",
        decision="the weight of time per token in the routing rule, period by period",
        source="Li et al., ICML 2026, arXiv 2603.13358",
        docs="ppd_weights",
        audit="ppd.audit:cluster",
    ),
    _ours(
        "OServe",
        "oserve",
        "oserve.scenarios:SCENARIOS",
        decision="which replica shapes a cluster is made of, minute by minute, and how request types are routed",
        source="Jiang et al., ICML 2026, arXiv 2602.12151",
        docs="oserve",
        baselines="oserve.policies",
        audit="oserve.audit:cluster",
    ),
    _ours(
        "PipeSDNav",
        "pipesd.nav",
        "pipesd.scenarios:SCENARIOS",
        decision="token by token: keep drafting, upload, or have the draft verified across a slow link",
        source="PipeSD, ICML 2026, arXiv 2605.13319",
        docs="pipesd_nav",
        audit="pipesd.audit:cloud",
    ),
    _ours(
        "PipeSDBatch",
        "pipesd.batch",
        "pipesd.batch.scenarios:SCENARIOS",
        decision="when to upload the tokens of a window that is being drafted",
        source="PipeSD, ICML 2026, arXiv 2605.13319",
        docs="pipesd_batch",
        audit="pipesd.audit:window",
    ),
    _ours(
        "PipeSDTune",
        "pipesd.tune",
        "pipesd.scenarios:TUNING",
        decision="which confidence thresholds ask for a verdict, twenty tokens at a time",
        source="PipeSD, ICML 2026, arXiv 2605.13319",
        docs="pipesd_tune",
        audit="pipesd.audit:cloud",
    ),
    _ours(
        "MemPlace",
        "memory.place",
        "memory.place.scenarios:SCENARIOS",
        decision="which of the four stages of a memory pipeline run on the FPGA beside the GPU, request by request",
        source="He et al., ICML 2026, arXiv 2603.29002",
        docs="mem_place",
        audit="memory.audit:place",
    ),
    _ours(
        "MemPipe",
        "memory.pipe",
        "memory.pipe.scenarios:SCENARIOS",
        decision="which device a stage goes to when requests queue for GPU, FPGA and the link",
        source="He et al., ICML 2026, arXiv 2603.29002",
        docs="mem_pipe",
        audit="memory.audit:pipe",
    ),
    _ours(
        "AttentionBudget",
        "attention",
        "attention.scenarios:SCENARIOS",
        decision="which attention kernel and feature budget prefills a batch, under deadlines and a budget of loss",
        source="Luna, Bouhsine, Choromanski, ICML 2026, arXiv 2602.04915",
        docs="attention_budget",
        baselines="attention.policies",
        audit="attention.audit:audit",
    ),
    _ours(
        "Unmask",
        "unmask",
        "unmask.scenarios:SCENARIOS",
        decision="which masked positions a masked-diffusion language model reveals at each denoiser call",
        source="Luxembourg, Permuter, Nachmani, ICML 2026, arXiv 2506.19037",
        docs="unmask",
        baselines="unmask.policies",
        audit="unmask.audit:positions",
    ),
    _ours(
        "Forage",
        "forage",
        "forage.scenarios:SCENARIOS",
        decision="which part of a long text to open next, at which grain, what to write down, and when to stop",
        source="Zhang et al., ICML 2026, arXiv 2605.04496",
        docs="forage",
        baselines="forage.policies",
        audit="forage.audit:forage",
    ),
    _ours(
        "SegmentedPrefill",
        "segmented",
        "segmented.scenarios:SCENARIOS",
        decision="in which mode each long prompt is executed, and whose next step runs",
        source="Shang et al., ICML 2026, arXiv 2605.11744",
        docs="segmented_prefill",
        audit="segmented.audit:recount",
    ),
    _ours(
        "DistillProgramme",
        "distill",
        "distill.scenarios:SCENARIOS",
        decision="which students are distilled from which shared artefact, when, and under which power cap",
        source="Lambert, Luccioni, ICML 2026, arXiv 2605.13981",
        docs="distill_programme",
        baselines="distill.programme",
        audit="distill.audit:audit",
    ),
)
"""Every environment of this package."""


def scenario_names(env_id: str) -> tuple[str, ...]:
    """The scenarios that an environment takes, by name; none for one that has none.

    Raises:
        UnknownName: no such environment is registered.
    """
    return spec(env_id).scenario_names()


def register_all() -> None:
    """Register every environment of this package, and those that installed packages offer. Nothing of them is imported."""
    register(*ENVIRONMENTS)
    register_installed()
