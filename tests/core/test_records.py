"""Records: dtype, blank, packing, views in compiled code, and what observations and metrics make of their fields."""

import numpy as np
import pytest

from llmgym.core.jit import kernel
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.records import Record, float32, float64, int32, metric, shown, uint64, viewing
from llmgym.errors import InvalidArgument, UnknownArgument


class Base(Record):
    key: int = uint64("Seeds everything.")
    count: int = int32("Requests so far.")


class Episode(Base):
    best_s: float = float64("Shortest time so far, seconds.", blank=np.inf)
    waiting: np.ndarray = int32("Requests at each replica.", shape=(3,), blank=-1)


class Seen(Record):
    load: float = shown("load", unit="1 / s", low=-1.0, high=4.0)
    ages: np.ndarray = shown("ages of the oldest", size=3, name="queue.ages")


class Measured(Record):
    wait_s: float = metric("mean wait, s", best="min")
    done: float = metric("requests done")
    rate: float = metric("requests a second", best="max", name="rate-rps")


BLANK = Episode.blank


def test_the_dtype_has_the_fields_of_the_bases_first_and_is_aligned_as_in_c():
    assert Episode.dtype.names == ("key", "count", "best_s", "waiting")
    assert Episode.dtype == np.dtype(
        [("key", "u8"), ("count", "i4"), ("best_s", "f8"), ("waiting", "i4", (3,))], align=True
    )
    assert Base.dtype.names == ("key", "count")


def test_a_kernel_gives_a_record_its_beginning():
    @kernel(announce="a test")
    def begin(episodes, lane):
        episodes[lane] = BLANK[0]
        episodes[lane].key = 7

    episodes = np.frombuffer(b"\x55" * (2 * Episode.dtype.itemsize), Episode.dtype).copy()
    begin(episodes, 1)
    assert episodes[1]["key"] == 7 and episodes[1]["count"] == 0 and episodes[1]["best_s"] == np.inf
    assert episodes[1]["waiting"].tolist() == [-1, -1, -1]
    assert episodes[0]["count"] == 0x55555555  # the other lane is left alone


def test_the_blank_record_is_never_written_to():
    with pytest.raises(ValueError, match="read-only"):
        Episode.blank["count"] = 1


def test_pack_takes_fields_from_a_source_and_from_words_and_misses_none():
    class Scenario:
        count = 5
        best_s = 2.0
        key = 1

    packed = Episode.pack(Scenario(), key=9, waiting=(1, 2, 3))
    assert packed.shape == (1,) and packed[0].tolist()[:3] == (9, 5, 2.0)
    with pytest.raises(InvalidArgument, match="Episode needs a value for 'waiting'"):
        Episode.pack(Scenario())
    with pytest.raises(UnknownArgument, match="wating"):
        Episode.pack(Scenario(), wating=(1, 2, 3))


def test_a_view_writes_the_fields_of_a_row_and_nothing_else():
    view = viewing(Seen)

    @kernel(announce="a test")
    def write(rows, lane):
        out = view(rows[lane])
        out.load = 2.5
        for k in range(3):
            out.ages[k] = 10.0 + k

    rows = np.zeros((3, 6), np.float32)
    write(rows, 1)
    assert rows[1].tolist() == [2.5, 10.0, 11.0, 12.0, 0.0, 0.0]
    assert not rows[0].any() and not rows[2].any()


def test_a_layout_begins_with_the_fields_of_its_record():
    layout = Layout([Field("tail", 2, 0.0, 1.0, "-", "the rest")], Seen)
    assert [field.name for field in layout] == ["load", "queue.ages", "tail"]
    assert layout["queue.ages"] == slice(1, 4) and layout["tail"] == slice(4, 6) and layout.size == 6
    box = layout.box()
    assert box.low.tolist() == [-1.0, 0, 0, 0, 0, 0] and box.high[0] == 4.0
    assert layout.text(np.arange(6, dtype=np.float32)).splitlines() == [
        "load        0",
        "queue.ages  1 2 3",
        "tail        4 5",
    ]


def test_metrics_have_names_and_a_headline():
    assert Measured.names() == ("wait_s", "done", "rate-rps")
    assert Measured.headline() == {"wait_s": "min", "rate-rps": "max"}


def test_a_field_of_another_width_keeps_its_width():
    class Narrow(Record):
        x: float = float32("A number.")

    assert Narrow.dtype["x"] == np.float32


def test_fields_of_several_bases_are_all_there():
    class Other(Record):
        clock_s: float = float64("Simulated time, seconds.")

    class Both(Base, Other):
        own: int = int32("A number.")

    assert set(Both.dtype.names) == {"key", "count", "clock_s", "own"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"__annotations__": {"y": int}}, r"\.y declares no field"),
        ({"__annotations__": {"q": int}, "q": 3}, r"\.q declares no field"),
        ({"__annotations__": {"names": int}, "names": int32("x")}, r"\.names: every record has something"),
        ({"a": metric("x", name="same"), "b": metric("y", name="same")}, "two fields are called 'same'"),
        ({"a": int32("x", blank="text")}, r"\.a: blank='text'"),
    ],
)
def test_a_declaration_that_is_none_is_told(body, message):
    with pytest.raises(InvalidArgument, match=message):
        type("Wrong", (Record,), body)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (int32("x"), r"Wrong\.a is int32\[\]"),
        (float64("x", shape=3), r"Wrong\.a is float64\[3\]"),
        (shown("x"), r"Wrong\.a is float32"),
    ],
)
def test_metrics_are_single_numbers_of_64_bits(field, message):
    record = type("Wrong", (Record,), {"a": field})
    with pytest.raises(InvalidArgument, match=message):
        type("Simulated", (Simulation,), {"metrics": record})


def test_an_observation_is_made_of_what_is_shown():
    with pytest.raises(InvalidArgument, match=r"Episode\.key is uint64"):
        Layout(head=Episode)
    with pytest.raises(InvalidArgument, match="second argument, head=Seen"):
        Layout(Seen)
    with pytest.raises(InvalidArgument, match="at least one field"):
        Layout()


@pytest.mark.parametrize("value", [None, "7", 1.5, 2**40, (1, 2), object()])
def test_pack_refuses_what_a_field_cannot_hold(value):
    with pytest.raises(InvalidArgument, match=r"Base\.count="):
        Base.pack(key=1, count=value)


def test_a_method_of_the_source_is_no_value():
    with pytest.raises(InvalidArgument, match="needs a value for 'count'"):
        Base.pack([1, 2], key=1)


def test_render_modes_that_a_class_chose_stay_those_of_its_subclasses():
    class Own(Simulation):
        render_modes = ("ansi", "human")

    class Below(Own):
        pass

    class Viewed(Simulation):
        view = "somewhere"

    assert Below.render_modes == ("ansi", "human") and Viewed.render_modes == ("rgb_array", "ansi")
