"""The test kit: what the tests of this package hold its environments to, for any registered environment.

    from llmgym.testing import check
    print(check("my_env:me/My-v0"))

It needs neither pytest nor hypothesis. Single checks are functions of `llmgym.testing.invariants` and `llmgym.testing.hidden`.
"""

from llmgym.testing.kit import Report, Result, check

__all__ = ["Report", "Result", "check"]
