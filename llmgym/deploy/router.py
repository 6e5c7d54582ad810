"""The routing rules of PPDRouting in a router that asks `route_request(endpoints, engine_stats, request_stats, request)`.

A fleet has endpoints that prefill (P) and endpoints that decode (D). The first turn of a conversation is prefilled on a P and
handed over to a D, which then holds the conversation. A later turn goes the same way, or its D prefills it itself, which saves the
transfer and disturbs those that decode there. The table rule of Li et al., "Not All Prefills Are Equal", ICML 2026 (arXiv
2603.13358), Algorithm 1, decides by the size of the context, the kind of the turn and the request rate;
`llmgym.deploy.export_routes` writes its table.

    router = PPDRouter(TableRule.read("routes.npz"))
    url = await router.route_request(endpoints, engine_stats, request_stats, request, request_json)
"""

import logging
import math
import time
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import CheckpointError, InvalidArgument

FORMAT = "llmgym-routes-1"
CHARACTERS_OF_TOKEN = 4
"""Characters of a token where nobody counts tokens: a rule of thumb for English text."""
WINDOW_S = 10.0
"""Requests of so many seconds make the request rate: the window in which the paper's table was measured."""
SESSIONS = 100_000
"""Conversations that are remembered; the ones that were longest silent are forgotten."""
logger = logging.getLogger(__name__)


class Turn(NamedTuple):
    """What a rule is told of a later turn.

    Attributes:
        context: tokens of the conversation so far.
        prompt: new tokens.
        answer: expected tokens of the answer.
        rate_rps: requests a second of the fleet.
    """

    context: int
    prompt: int
    answer: int
    rate_rps: float


class Rule(Protocol):
    """Decides about a later turn."""

    def local(self, turn: Turn) -> bool:
        """Whether the turn is prefilled on the D that holds its conversation."""


class ThresholdRule:
    """`threshold` of PPDRouting: local where a turn has few new tokens.

    Args:
        tokens: turns with fewer new tokens are local.

    Raises:
        InvalidArgument: `tokens` is no whole number from 0 on.
    """

    def __init__(self, tokens: int = 512) -> None:
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
            raise InvalidArgument(f"tokens={tokens!r}: expected a whole number from 0 on")
        self.tokens = tokens

    def local(self, turn: Turn) -> bool:
        """Whether the turn is prefilled on its D."""
        return turn.prompt < self.tokens


class TableRule:
    """`table` of PPDRouting: local where the measured table says so for the cell of the turn.

    Args:
        routes: 1 for local, int8 [contexts, types, rates].
        rates_rps: rates of the table, float64 [rates], req/s.
        bounds: of the cells, by name, as `llmgym.deploy.export_routes` writes them.
        bypass: turns with fewer new tokens are local in any case.
    """

    def __init__(
        self,
        routes: NDArray[np.int8],
        rates_rps: NDArray[np.float64],
        bounds: Mapping[str, Sequence[float]],
        bypass: int = 0,
    ) -> None:
        self.routes, self.rates_rps, self.bypass = routes, rates_rps, bypass
        self._context = float(bounds["context"][0])
        self._generates, self._pastes = bounds["ratio"]
        self._answers, self._balanced, self._paste = bounds["answer"], bounds["balanced"], bounds["paste"]

    @classmethod
    def read(cls, path: Path | str, bypass: int = 0) -> "TableRule":
        """Read a table.

        Args:
            path: of the file.
            bypass: turns with fewer new tokens are local in any case.

        Raises:
            CheckpointError: there is none, or it is none.
        """
        if not Path(path).is_file():
            raise CheckpointError(f"no such file: {path}")
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["format"]) != FORMAT:
                    raise CheckpointError(f"{path} is no table of routes")
                bounds = {
                    name: file[name].tolist() for name in ("context", "ratio", "answer", "balanced", "paste")
                }
                return cls(file["routes"], file["rates_rps"], bounds, bypass)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is damaged or no table of routes ({error})") from error

    def cell(self, turn: Turn) -> tuple[int, int]:
        """Numbers of the context class and of the type of a turn."""
        ratio = turn.prompt / max(turn.answer, 1)
        if ratio < self._generates:
            kind = sum(turn.answer > bound for bound in self._answers)
        elif ratio <= self._pastes:
            kind = len(self._answers) + 1 + sum(turn.prompt > bound for bound in self._balanced)
        else:
            kind = len(self._answers) + len(self._balanced) + 2
            kind += sum(turn.prompt > bound for bound in self._paste)
        return int(turn.context > self._context), kind

    def local(self, turn: Turn) -> bool:
        """Whether the turn is prefilled on its D."""
        if turn.prompt < self.bypass:
            return True
        # of two rates that are equally near, the upper
        distance = np.abs(self.rates_rps - turn.rate_rps)[::-1]
        nearest = len(distance) - 1 - int(distance.argmin())
        return bool(self.routes[(*self.cell(turn), nearest)])


class Route(NamedTuple):
    """Where a request goes.

    Attributes:
        prefill: URL of the endpoint that prefills it and hands it over; None: `decode` prefills it itself.
        decode: URL of the endpoint that decodes it, and holds the conversation from then on.
    """

    prefill: str | None
    decode: str


def role_of(endpoint: Any) -> str:
    """`prefill`, `decode` or nothing, by the beginning of an endpoint's `model_label`."""
    label = str(getattr(endpoint, "model_label", "") or "")
    return next((role for role in ("prefill", "decode") if label.startswith(role)), "")


def characters(text: str) -> int:
    """Tokens of a text, by its length."""
    return max(1, math.ceil(len(text) / CHARACTERS_OF_TOKEN)) if text else 0


class PPDRouter:
    """A router for endpoints that prefill and endpoints that decode.

    Args:
        rule: decides about later turns.
        session_key: header of a request, or field of its body, that names its conversation. A request without one is a first turn.
        tokens_of: counts the tokens of a text.
        answer_tokens: expected of an answer where the body has neither `predicted_output_tokens` nor `max_tokens`.
        role: tells what an endpoint does.
        clock: tells the time, s.
    """

    def __init__(
        self,
        rule: Rule,
        *,
        session_key: str = "x-session-id",
        tokens_of: Callable[[str], int] = characters,
        answer_tokens: int = 256,
        role: Callable[[Any], str] = role_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rule, self.session_key = rule, session_key
        self._tokens_of, self._answer_tokens, self._role, self._clock = tokens_of, answer_tokens, role, clock
        self._holder: OrderedDict[str, str] = OrderedDict()
        self._asked_s: deque[float] = deque()

    async def route_request(
        self,
        endpoints: Sequence[Any],
        engine_stats: Mapping[str, Any],
        request_stats: Mapping[str, Any],
        request: Any,
        request_json: Mapping[str, Any] | None = None,
    ) -> str:
        """Where a request is sent first, which is where it is prefilled.

        Args:
            endpoints: with `url` and `model_label`.
            engine_stats: by URL, with `num_running_requests` and `num_queuing_requests`.
            request_stats: by URL; not looked at.
            request: with `headers`.
            request_json: its body.

        Returns:
            A URL; `route` tells the endpoint that decodes as well.

        Raises:
            InvalidArgument: no endpoint decodes.
        """
        found = self.route(endpoints, engine_stats, request, request_json or {})
        return found.prefill or found.decode

    def route(
        self,
        endpoints: Sequence[Any],
        engine_stats: Mapping[str, Any],
        request: Any,
        body: Mapping[str, Any],
    ) -> Route:
        """Both endpoints of a request.

        Args:
            endpoints: with `url` and `model_label`.
            engine_stats: by URL, with `num_running_requests` and `num_queuing_requests`.
            request: with `headers`.
            body: of the request.

        Returns:
            Where it is prefilled, and where it is decoded.

        Raises:
            InvalidArgument: no endpoint decodes.
        """
        rate_rps = self._rate()
        roles: dict[str, list[str]] = {"prefill": [], "decode": []}
        for endpoint in endpoints:
            roles.setdefault(self._role(endpoint), []).append(str(endpoint.url))
        if not roles["decode"]:
            raise InvalidArgument(
                f"endpoints: none of {len(endpoints)} decodes; expected a model_label that begins with 'decode'"
            )
        session = (getattr(request, "headers", None) or {}).get(self.session_key) or body.get(
            self.session_key
        )
        holder = self._holder.get(str(session)) if session is not None else None
        first = holder not in roles["decode"]
        decode = self._idlest(roles["decode"], engine_stats) if holder is None or first else holder
        if session is not None:
            self._holder[str(session)] = decode
            self._holder.move_to_end(str(session))
            if len(self._holder) > SESSIONS:
                self._holder.popitem(last=False)
        if not roles["prefill"] or (not first and self._local(body, rate_rps)):
            return Route(None, decode)
        return Route(self._idlest(roles["prefill"], engine_stats), decode)

    def _local(self, body: Mapping[str, Any], rate_rps: float) -> bool:
        """What the rule says; where it fails, a turn stays with its conversation."""
        try:
            return bool(self.rule.local(self.turn(body, rate_rps)))
        except Exception as error:
            logger.error("llmgym: the rule failed, the turn stays on its node: %s", error, exc_info=error)
            return True

    def turn(self, body: Mapping[str, Any], rate_rps: float) -> Turn:
        """What a body says of a turn; in a chat what comes after the last answer is new.

        Args:
            body: of a request, with `messages`, or with `prompt`, all of which is new.
            rate_rps: requests a second.
        """
        messages = body.get("messages")
        texts = [_text(one.get("content")) for one in messages] if messages else [_text(body.get("prompt"))]
        answers = [i for i, one in enumerate(messages or ()) if one.get("role") == "assistant"]
        new = answers[-1] + 1 if answers else 0
        expected = body.get("predicted_output_tokens") or body.get("max_tokens") or self._answer_tokens
        return Turn(
            sum(map(self._tokens_of, texts[:new])),
            sum(map(self._tokens_of, texts[new:])),
            int(expected),
            rate_rps,
        )

    def _rate(self) -> float:
        now_s = self._clock()
        self._asked_s.append(now_s)
        while self._asked_s[0] < now_s - WINDOW_S:
            self._asked_s.popleft()
        return len(self._asked_s) / WINDOW_S

    @staticmethod
    def _idlest(urls: Sequence[str], engine_stats: Mapping[str, Any]) -> str:
        """The endpoint with fewest requests, and of several the first by name; one without statistics counts as idle."""

        def load(url: str) -> tuple[int, str]:
            stats = engine_stats.get(url)
            running = getattr(stats, "num_running_requests", 0) or 0
            return running + (getattr(stats, "num_queuing_requests", 0) or 0), url

        return min(urls, key=load)


def _text(content: Any) -> str:
    """The text of a message, or of its parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(
            str(part.get("text", "")) if isinstance(part, Mapping) else str(part) for part in content
        )
    return ""
