"""What goes wrong, said so that the reader knows what to do next.

Every error of this package derives from `LlmgymError`. Errors about a value a caller passed are also `ValueError`,
so `except ValueError` catches them.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class LlmgymError(Exception):
    """Base class of every error raised by llmgym."""


class InvalidArgument(LlmgymError, ValueError):
    """An argument has a value that is not allowed; the message names argument, value and what is allowed."""


class UnknownName(InvalidArgument):
    """A profile, workload, scenario, policy or metric that does not exist; the message lists those that do."""

    def __init__(self, kind: str, name: object, known: Iterable[str], says: str | None = None) -> None:
        known = sorted(known)
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"{says or f'unknown {kind} {name!r}'}.{hint} Known: {', '.join(known) or '(none)'}")
        self.kind, self.name, self.known, self._says = kind, name, known, says

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.name, self.known, self._says)


class UnknownArgument(UnknownName, TypeError):
    """A keyword that a function does not take.

    Also a `TypeError` in Python's own words, which libraries look for that try a keyword and go on without it.
    """

    def __init__(self, function: str, name: str = "", known: Iterable[str] = ()) -> None:
        self.function = function
        if name:
            says = f"{function}() got an unexpected keyword argument {name!r}"
            super().__init__(f"argument of {function}", name, known, says)
        else:  # gymnasium.make raises a TypeError anew, with a message alone
            InvalidArgument.__init__(self, function)
            self.kind, self.name, self.known = "argument", "", []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.function, self.name, self.known)


class InvalidAction(InvalidArgument):
    """An action outside the action space, of the wrong type or shape, or masked where masks are enforced."""


class TraceError(LlmgymError, ValueError):
    """A trace file that cannot be read; the message names the file, the line and the column."""


class ProfileError(LlmgymError, ValueError):
    """A kernel cost profile that is missing a table, a field or its provenance."""


class OutputError(LlmgymError, OSError):
    """A file that cannot be written, as on a full disk; the message names it and says what was left in its place."""


class CheckpointError(LlmgymError, ValueError):
    """A checkpoint that is truncated, of another version, or made for another environment."""


class NoProgress(LlmgymError, RuntimeError):
    """A simulation that would go on for ever without serving anybody; the message says what keeps it, and what to change."""


class KernelError(LlmgymError, RuntimeError):
    """A kernel that cannot be compiled; the message names the function, its file and line, and what is wrong there."""


class ResetNeeded(LlmgymError, RuntimeError):
    """Something needs an episode, and `reset` was not called yet; or `step` was called on one that has ended."""


class EnvironmentClosed(LlmgymError, RuntimeError):
    """`step` or `reset` of a vector environment after `close`, which has released its threads."""


class CheckFailed(LlmgymError, AssertionError):
    """An environment does not hold what the test kit checks; the message names each check and says what to do.

    Attributes:
        report: everything that was checked, a `llmgym.testing.Report`.
    """

    def __init__(self, env_id: str, checks: int, failed: Iterable[str], report: Any) -> None:
        self._given = env_id, checks, list(failed), report
        listed = "".join(f"\n- {line}" for line in self._given[2])
        super().__init__(f"{env_id}: {len(self._given[2])} of {checks} checks failed{listed}")
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given


class MissingExtra(LlmgymError, ImportError):
    """An optional library is not installed; the message gives the pip command that installs it."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the optional '{extra}' extra: pip install 'llmgym[{extra}]'")
        self.what, self.extra = what, extra

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.extra)
