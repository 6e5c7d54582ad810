"""The layout says where a field lies, what its bounds are, and documents itself."""

import numpy as np
import pytest

from llmgym.core.layout import Field, Layout
from llmgym.errors import InvalidArgument, UnknownName

FIELDS = [Field("a", 1, 0.0, 1.0, "s", "first"), Field("b.c", 3, -1.0, 4.0, "tokens", "second")]


def test_slices_and_bounds():
    layout = Layout(FIELDS)
    assert (layout.size, layout["a"], layout["b.c"]) == (4, slice(0, 1), slice(1, 4))
    assert list(layout) == FIELDS
    box = layout.box()
    assert box.dtype == np.float32
    assert box.low.tolist() == [0, -1, -1, -1] and box.high.tolist() == [1, 4, 4, 4]


def test_an_unknown_field_names_the_known_ones():
    with pytest.raises(UnknownName, match=r"'b.d'.*Did you mean 'b.c'.*Known: a, b.c"):
        Layout(FIELDS)["b.d"]


def test_a_field_declared_twice():
    with pytest.raises(ValueError, match="'a' is declared twice"):
        Layout([FIELDS[0], FIELDS[0]])


def test_equality_and_signature():
    assert Layout(FIELDS) == Layout(tuple(FIELDS)) and hash(Layout(FIELDS)) == hash(Layout(FIELDS))
    assert Layout(FIELDS) != Layout(FIELDS[:1]) and Layout(FIELDS) != FIELDS
    assert Layout(FIELDS).signature() == [["a", 1], ["b.c", 3]]


def test_markdown():
    rows = Layout(FIELDS).markdown().splitlines()
    assert rows[2] == "| 0 | `a` | 0 | 1 | s | first |"
    assert rows[3] == "| 1-3 | `b.c` | -1 | 4 | tokens | second |"


def test_tables_say_where_their_rows_are_and_whose_they_are():
    rows = Field("rows", 6, 0.0, 1.0, "-", "three rows of two", rows=3, actions=(0, 4))
    layout = Layout([FIELDS[0], rows, FIELDS[1]])
    (table,) = layout.tables()
    assert table == ("rows", ((1, 2),), 3, (0, 4)) and table.width == 2
    assert table.entries().tolist() == [[1, 2], [3, 4], [5, 6]]
    assert Layout(FIELDS).tables() == ()


def test_a_table_can_be_columns_of_several_fields():
    one = Field("length", 3, 0.0, 1.0, "-", "a column", rows=3, actions=(1,), table="jobs")
    two = Field("ages", 6, 0.0, 1.0, "-", "two columns", rows=3, actions=(1,), table="jobs")
    (table,) = Layout([FIELDS[0], one, two]).tables()
    assert table == ("jobs", ((1, 1), (4, 2)), 3, (1,)) and table.width == 3
    assert table.entries().tolist() == [[1, 4, 5], [2, 6, 7], [3, 8, 9]]
    other = Field("ages", 3, 0.0, 1.0, "-", "a column", rows=3, table="jobs")
    with pytest.raises(
        InvalidArgument, match=r"field 'ages': rows=3, actions=\(\): table 'jobs' has rows=3, actions=\(1,\)"
    ):
        Layout([one, other]).tables()
    with pytest.raises(InvalidArgument, match="table='jobs': only a field with rows"):
        Field("ages", 3, 0.0, 1.0, "-", "a column", table="jobs")


@pytest.mark.parametrize(
    ("rows", "actions", "message"),
    [
        (4, (), "rows=4: 6 entries are no rows of equal width"),
        (-1, (), "rows=-1"),
        (0, (2,), "only a field with rows"),
    ],
)
def test_tables_that_cannot_be(rows, actions, message):
    with pytest.raises(InvalidArgument, match=message):
        Field("rows", 6, 0.0, 1.0, "-", "what", rows, actions)
