"""What an observation is made of, declared once: slices, bounds and the documentation table all come from here."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from llmgym.core.records import Record
from llmgym.errors import InvalidArgument, UnknownName


@dataclass(frozen=True)
class Field:
    """One named part of an observation row.

    Attributes:
        name: dotted name, such as `queue.age`.
        size: number of float32 entries.
        low: smallest value of every entry.
        high: largest value of every entry.
        unit: what the value is measured in, or the scale it is divided by.
        about: one line for the reader of the documentation.
        rows: how many rows of equal width the entries are, one row after the other; 0: they are no table.
        actions: of a table, the actions of row 0; row i has those i places on. A network can then score each action by its row.
        table: fields of one table share its name and each hold some columns of it; empty: the field is a table of its own.

    Raises:
        InvalidArgument: the entries do not divide into the rows, or there are actions or a table without rows.
    """

    name: str
    size: int
    low: float
    high: float
    unit: str
    about: str
    rows: int = 0
    actions: tuple[int, ...] = ()
    table: str = ""

    def __post_init__(self) -> None:
        if self.rows < 0 or (self.rows and self.size % self.rows):
            raise InvalidArgument(
                f"field {self.name!r}: rows={self.rows!r}: {self.size} entries are no rows of equal width"
            )
        if self.actions and not self.rows:
            raise InvalidArgument(
                f"field {self.name!r}: actions={self.actions!r}: only a field with rows has actions"
            )
        if self.table and not self.rows:
            raise InvalidArgument(
                f"field {self.name!r}: table={self.table!r}: only a field with rows is part of one"
            )


class Table(NamedTuple):
    """Entries of an observation that are rows of equal width: a field, or several that hold a few columns each.

    Attributes:
        name: of the field or the table.
        parts: of each field, the index of its first entry in an observation and how many entries of a row it holds.
        rows: how many there are.
        actions: the actions of row 0; row i has those i places on.
    """

    name: str
    parts: tuple[tuple[int, int], ...]
    rows: int
    actions: tuple[int, ...]

    @property
    def width(self) -> int:
        """Entries of a row."""
        return sum(width for _, width in self.parts)

    def entries(self) -> NDArray[np.int64]:
        """Where the table is in an observation: index of each entry, int64 [rows, width]."""
        rows = np.arange(self.rows)[:, None]
        return np.concatenate(
            [start + width * rows + np.arange(width) for start, width in self.parts], axis=1
        )


class Layout:
    """The fields of an observation in order: `layout["queue.age"]` is the slice of that field.

    Args:
        fields: those whose sizes depend on the settings, after those of `head`.
        head: the record of those that are always there, which kernels write by name; None: there is none.

    Attributes:
        head: as given.
        size: entries of an observation.
    """

    def __init__(self, fields: Sequence[Field] = (), head: type[Record] | None = None) -> None:
        if isinstance(fields, type):
            raise InvalidArgument(
                f"Layout({fields.__name__}): a record is the second argument, head={fields.__name__}"
            )
        if head is not None:
            head.check_plain("float32", "an observation")
        self.head = head
        self.fields = (*(_fields_of(head) if head else ()), *fields)
        self._slices: dict[str, slice] = {}
        start = 0
        for field in self.fields:
            if field.name in self._slices:
                raise InvalidArgument(f"field {field.name!r} is declared twice")
            self._slices[field.name] = slice(start, start + field.size)
            start += field.size
        if start == 0:
            raise InvalidArgument("Layout(): an observation needs at least one field")
        self.size = start

    def __getitem__(self, name: str) -> slice:
        if name not in self._slices:
            raise UnknownName("observation field", name, self._slices)
        return self._slices[name]

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.fields == other.fields

    def __hash__(self) -> int:
        return hash(self.fields)

    def tables(self) -> tuple[Table, ...]:
        """The fields that are rows of equal width, in order; those of one table where the first of them is.

        Raises:
            InvalidArgument: fields of one table differ in their rows or their actions.
        """
        tables: dict[str, Table] = {}
        for f in self.fields:
            if not f.rows:
                continue
            name, part = f.table or f.name, (self[f.name].start, f.size // f.rows)
            table = tables.get(name, Table(name, (), f.rows, f.actions))
            if (table.rows, table.actions) != (f.rows, f.actions):
                raise InvalidArgument(
                    f"field {f.name!r}: rows={f.rows}, actions={f.actions}: "
                    f"table {name!r} has rows={table.rows}, actions={table.actions}"
                )
            tables[name] = table._replace(parts=(*table.parts, part))
        return tuple(tables.values())

    def box(self) -> Box:
        """The observation space: a flat float32 `Box` with the declared bounds, shape [size]."""
        low: NDArray[np.float32] = np.concatenate([np.full(f.size, f.low, np.float32) for f in self.fields])
        high: NDArray[np.float32] = np.concatenate([np.full(f.size, f.high, np.float32) for f in self.fields])
        return Box(low, high, dtype=np.float32)

    def signature(self) -> list[list[str | int]]:
        """Names and sizes, as a checkpoint stores them to recognise the layout it was trained on."""
        return [[field.name, field.size] for field in self.fields]

    def text(self, row: NDArray[np.float32]) -> str:
        """An observation, float32 [size], told field by field."""
        width = max((len(field.name) for field in self.fields), default=0)
        return "\n".join(
            f"{field.name:<{width}}  {' '.join(f'{value:.4g}' for value in row[self[field.name]])}"
            for field in self.fields
        )

    def markdown(self) -> str:
        """The table of the fields for the environment's documentation page."""
        rows = ["| index | field | low | high | unit | meaning |", "|---|---|---|---|---|---|"]
        for field in self.fields:
            part = self[field.name]
            index = str(part.start) if field.size == 1 else f"{part.start}-{part.stop - 1}"
            rows.append(
                f"| {index} | `{field.name}` | {field.low:g} | {field.high:g} | {field.unit} | {field.about} |"
            )
        return "\n".join(rows)


def _fields_of(head: type[Record]) -> Iterator[Field]:
    for name, slot in head.declared.items():
        size = math.prod(slot.shape)
        yield Field(
            slot.name or name,
            size,
            slot.low,
            slot.high,
            slot.unit,
            slot.about,
            size if slot.table else 0,
            slot.actions,
            slot.table,
        )
