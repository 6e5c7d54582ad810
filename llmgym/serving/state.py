"""Records and arrays of inference engines: what an engine, a resident, a request and an admission rule are to compiled code.

An environment with engines bases its records on these (`class Episode(Engine)`, `class Config(Limits)`), names its arrays as
`EngineState` and `EngineParams` do, and can then call every function of this package.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llmgym.core.records import Record, Records, Records2, float32, float64, int16, int32, int64, uint64
from llmgym.profiles.cost import StepCost

FAR = 2**31 - 1
"""A tick that never comes: the largest int32."""

NO_KEY = -1
"""Key of a block of the cache that holds nothing that could be found again."""


class Request(Record):
    """One request of a lane. A record and not an array for each field, so that an arrival touches one line of memory."""

    arrival_s: float = float64("Time of arrival, seconds.")
    area: int = int64("Predicted area when it last began to wait, tokens x batches.")
    prompt: int = int32("Length of the prompt, tokens.")
    output: int = int32("Length of the output, tokens; a scheduler cannot know it.")
    predicted: int = int32("Output length told to the scheduler, tokens; 0 if none is told.")
    kept: int = int32("Output that a preempted request has produced and keeps, tokens.")
    hosted: int = int32("Cache of a preempted request that is in the host's memory, tokens.")
    request_class: int = int32("Number of its class.")
    priority: int = int32("Lower ones first, as in vLLM.")
    first_key: int = int32("Key of its first block, where prefixes are cached; see `llmgym.serving.prefix`.")
    session: int = int32("Number of its session, where conversations run.")
    follower: int = int32("Number of the next turn of its conversation; 0 if there is none.")
    ticket: int = int32("Its place in the order of arrival, where conversations run; there -1 before.")
    think_s: float = float64("Time from the last token of the turn before it to its arrival, seconds.")
    ttft_s: float = float32(
        "Time from arrival to the first output token, seconds; -1 until then.", blank=-1.0
    )
    e2e_s: float = float32("Time from arrival to the last output token, seconds; -1 until then.", blank=-1.0)


class Limits(Record):
    """Settings that an engine reads: the first fields of the record `params.config[0]`."""

    kv_capacity: int = int32("Capacity of the KV cache, tokens.")
    chunk: int = int32("Longest prefill chunk of one request in one batch, tokens.")
    budget: int = int32("Most tokens of a batch.")
    seats: int = int32("Most residents.")
    block: int = int32(
        "Size of a cache block, tokens, a power of two: the cache is handed out in whole blocks."
    )
    first: int = int32("1 if the last prefill chunk yields the first output token, 0 if the next batch does.")
    first_stored: int = int32("1 if the KV of that token is stored in the same batch.")
    held: int = int32("1 if a completed request keeps its seat and blocks while the next batch is planned.")
    prefix: int = int32("1 if prefixes are cached.")
    conversations: int = int32(
        "1 if turns arrive after the turn before them; see `llmgym.serving.conversations`."
    )
    host_tokens: int = int32("Cache that the host's memory holds, tokens; 0 if nothing is copied.")
    to_host_s: float = float64("Time to copy a token of the cache to the host, seconds.")
    to_device_s: float = float64("Time to copy it back, seconds.")
    alone: int = int32("1 if a request that is alone in the engine may take the whole budget for its chunk.")
    per_chunk: float = float64("Reciprocal of `chunk`, 1/tokens.")
    launch_above: int = int64("Steps of more tokens are launched kernel by kernel.")
    launch_s: float = float64("What the host takes for that from the plan of a step on, seconds.")
    floor_s: float = float64("The same of steps with a prompt and no more tokens, seconds.")
    default_output: int = int32("Stands in for a prediction where there is none, tokens.")


class Engine(Record):
    """One engine: the first fields of the record `state.lane[lane]`."""

    clock_s: float = float64("Simulated time, seconds.")
    key: np.uint64 = uint64("Seeds what is drawn within the episode.")
    tick: int = int32("Batches so far: the shared progress of the decoding residents.")
    residents: int = int32("Requests that have been admitted and have not completed.")
    walk: int = int32("Index of the first resident that is not simply decoding.")
    used: int = int32("Blocks held by residents that are not paused, tokens.")
    unfilled: int = int32(
        "Part of these blocks, of the residents before `walk`, that is still empty, tokens."
    )
    swapped: int = int32("Cache of the paused residents, tokens.")
    paused: int = int32("Residents that are held back.")
    growth: int = int32("Blocks that the planned batch adds to the cache, tokens.")
    budget_left: int = int32("Tokens that the planned batch may still take.")
    next_finish: int = int32("No resident completes before this tick.", blank=FAR)
    chunk: int = int32("Longest prefill chunk of one request in the planned batch, tokens.")
    blocked: int = int32("1 if the plan had to pause or preempt: nobody is admitted to this batch.")
    overflow: int = int32("PAUSE, RECOMPUTE or CLEAR, in force when the batch was planned.")
    skip: int = int32("1 if pausing skips those that do not fit, 0 if it pauses everybody younger too.")
    victim: int = int32("Who is preempted, a value of `VICTIMS`, or CHOSEN.")
    short: int = int32("1 if the next batch does not fit and waits for a victim to be chosen.")
    leaving: int = int32("Residents that have completed and still hold their seat and blocks.")
    clear_probability: float = float64("Probability with which clearing throws out a resident.")
    waiting: int = int32("Requests that wait for admission.")
    found: int = int32("Tokens of the request looked up last that are in the cache.")
    revived: int = int32("Tokens of these in blocks that nobody holds.")
    hosted: int = int32("Cache of waiting requests in the host's memory, blocks in tokens.")
    copy_s: float = float64("Copies to and from the host in the planned batch, seconds.")
    copied_out: int = int64("Cache copied to the host, tokens.")
    copied_in: int = int64("Cache copied back, tokens.")
    reused: int = int64("Tokens that were found in the cache and not computed.")
    tickets: int = int32("Requests that have arrived, where conversations run.")
    bare: int = int32("First free block without a key, where prefixes are cached.")
    free_row: int = int32("First free row of blocks, where prefixes are cached.")
    waiting_area: int = int64("Predicted area of the waiting requests, tokens x batches.")
    done: int = int32("Requests that have completed.")
    late: int = int32("Completed requests that took longer than the end-to-end objective of their class.")
    met: int = int32("Completed requests that were within all objectives of their class.")
    met_weight: float = float64("What they count together, by the weights of their classes.")
    preemptions: int = int32("How often a resident has lost its cache.")
    dropped: int = int64("Cache thrown away by preemption, tokens.")
    draws: int = int32("Random numbers drawn within the episode.")
    batches: int = int32("Batches that have run.")
    batch_used: int = int32("Cache in use by those that ran in the last batch, tokens.")
    batch_prefill: int = int32("Prompt tokens of the last batch.")
    batch_decodes: int = int32("Output tokens of the last batch.")
    batch_s: float = float64("Duration of the last batch, seconds.")
    busy_s: float = float64("Duration of all batches, seconds.")
    kv_s: float = float64("Integral of `batch_used` over busy time, token seconds.")
    kv_peak: int = int32("Largest `batch_used` so far, tokens.")
    prefilled: int = int64("Prompt tokens of all batches.")
    decoded: int = int64("Output tokens of all batches.")


class Resident(Record):
    """One request that has been admitted; an engine keeps them in order of admission."""

    request: int = int32("Number of the request.")
    prompt: int = int32("Tokens to prefill: the prompt, and after a preemption also the kept output.")
    prefilled: int = int32("Tokens of these that have been prefilled.")
    output: int = int32("Length of the output, tokens.")
    predicted: int = int32("Output length that the scheduler reckons with, tokens.")
    kept: int = int32("Output from before a preemption, tokens.")
    base: int = int32("While it decodes, the output so far is the engine's tick minus this.")
    finish: int = int32("While it decodes, the tick at which it completes.", blank=FAR)
    run: int = int32("Tokens planned for the next batch.")
    decoding: int = int16("1 once its prompt is done and the tick counts its output.")
    paused: int = int16("1 while it is held back, with its cache swapped out.")
    row: int = int32("Row of its blocks, where prefixes are cached.")
    blocks: int = int32("Blocks that it holds, where prefixes are cached.")
    keyed: int = int32("Blocks of these, from the first on, that have keys.")
    forget: int = int16("1 if its blocks lose their keys when it leaves, so that they are handed out next.")
    gone: int = int16("1 once it has completed, while it still holds its seat and blocks.")


class Order(Record):
    """An order in which waiting requests are kept."""

    kind: int = int64("What it goes by, a value of `llmgym.serving.queue.ORDERS`.")
    weight: float = float64(
        "`aging`: what a second of waiting counts, tokens x batches; `priority-aging`: what a step of priority counts, seconds."
    )


class Objective(Record):
    """What a class of requests is promised."""

    ttft_s: float = float64("Time from arrival to the first token, seconds.")
    tpot_s: float = float64("Time per output token after the first, seconds.")
    e2e_s: float = float64("Time from arrival to the last token, seconds.")
    weight: float = float64("What a request counts that is within both.")


class CompiledRule(Record):
    """An admission rule as compiled code reads it; see `llmgym.serving.rules.Rule`."""

    row: int = int32("Row of `params.orders` that holds the order in which waiting requests are looked at.")
    check: int = int32("What must hold for an admission, a value of `CHECKS`.")
    batch: int = int32("How a batch is put together, a value of `BATCHES`.")
    skip: int = int32("1 if a request that does not fit is passed over.")
    overflow: int = int32("PAUSE, RECOMPUTE or CLEAR.")
    victim: int = int32("Who is preempted, a value of `VICTIMS`.")
    most: int = int32("Most admissions to a batch.")
    watermark: float = float64("Share of the cache that the `whole-prompt` check keeps free.")
    headroom: float = float64("Share of the cache that the `headroom` check keeps free.")
    clear_probability: float = float64("Probability with which clearing throws out a resident.")


class Block(Record):
    """One block of a cache. They are numbered from 1; number 0 is both ends of the line of free blocks with keys."""

    key: int = int32("What is in it: a number of `holder`, or NO_KEY.", blank=NO_KEY)
    held: int = int32("Residents that hold it.")
    before: int = int32("The one before it in the line.")
    after: int = int32("The one after it in the line, or the next one without a key.")
    twin: int = int32("The next younger block of the same key, or 0.")


class Prefixes(NamedTuple):
    """What engines remember of their blocks; the first axis is the engine.

    Attributes:
        block: the blocks of each cache [engines, blocks + 1].
        held: blocks of each row, int32 [engines, seats, 1 + blocks of the longest request]; a row belongs to a resident, or tells
            the next free one.
        holder: the oldest block of each key, or 0, int32 [engines, keys].
    """

    block: Records2[Block]
    held: NDArray[np.int32]
    holder: NDArray[np.int32]


def no_prefixes(engines: int) -> Prefixes:
    """Empty arrays, for engines that forget."""
    return Prefixes(
        Block.zeros(engines, 0), np.zeros((engines, 0, 0), np.int32), np.zeros((engines, 0), np.int32)
    )


class EngineState(Protocol):
    """The arrays of several engines; the first axis is the engine, which the functions of this package call the lane."""

    @property
    def lane(self) -> Records[Engine]:
        """One record for each engine."""

    @property
    def resident(self) -> Records2[Resident]:
        """Residents [engines, seats], the first `residents` of each row in order of admission."""

    @property
    def request(self) -> Records2[Request]:
        """Requests [engines, n], numbered by arrival; with conversations in any order, first turns by arrival."""

    @property
    def queue(self) -> NDArray[np.int32]:
        """Waiting requests, int32 [engines, orders, 2 + n]; see `llmgym.serving.queue`. With conversations one row more."""

    @property
    def prefix(self) -> Prefixes:
        """What is remembered of the blocks; `no_prefixes` where nothing is."""

    @property
    def scratch(self) -> NDArray[np.int32]:
        """Intermediate results, int32 [engines, SCRATCH_ROWS, seats + 1]; see `llmgym.serving.admission`."""


class EngineParams(Protocol):
    """What all engines share; `llmgym.serving.rules.pack` makes rules, class budgets and orders."""

    @property
    def config(self) -> Records[Limits]:
        """One record, [1]."""

    @property
    def rules(self) -> Records[CompiledRule]:
        """The admission rules by number."""

    @property
    def class_budgets(self) -> NDArray[np.int32]:
        """Admissions to a batch, int32 [rules, classes]."""

    @property
    def orders(self) -> Records[Order]:
        """The orders in which waiting requests are kept, [orders]."""

    @property
    def objectives(self) -> Records[Objective]:
        """What each class of requests is promised, [classes]."""

    @property
    def cost(self) -> StepCost:
        """What a batch costs."""
