"""How the tests drive environments: the functions of the test kit, under the name that tests import them by."""

from llmgym.testing.drive import (
    MODES,
    check_lanes_are_singles,
    check_same_as_sync,
    legal_action,
    legal_actions,
    row,
    same,
    same_where_told,
)

__all__ = [
    "MODES",
    "check_lanes_are_singles",
    "check_same_as_sync",
    "legal_action",
    "legal_actions",
    "row",
    "same",
    "same_where_told",
]
