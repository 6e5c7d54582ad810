"""Every reader on small files in the public formats, and every way a file can be bad."""

import csv
import gzip
import io
import json
import re
import warnings
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmgym.errors import InvalidArgument, TraceError
from llmgym.workloads import from_trace, load, poisson, replay

# invented requests in the formats of the public files
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 23:59:59.5000000,10,1\n2023-11-17 00:00:01.0000000,20,2\n"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2024-05-12 00:00:10+00:00,10,1\r\n2024-05-12 00:00:11.500000+00:00,20,2"
)
MOONCAKE = (
    '{"timestamp": 3000, "input_length": 10, "output_length": 1, "hash_ids": [0, 1]}\n'
    '{"timestamp": 4500, "input_length": 20, "output_length": 2, "hash_ids": [0]}\n'
)
BURST_6 = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,10,1,11,Conversation log\n6.5,GPT-4,20,2,22,API log\n"
)
BURST_8 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    '19440110.0,1722,43,GPT-4,10,1,11,"Conversation log"\n19440111.5,d598,2,ChatGPT,20,2,22,API log\n'
)
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,10,1\n1.5,20,2\n"
VIDUR_MORE = "num_prefill_tokens,num_decode_tokens,pd_ratio,arrived_at\n10,1,10.0,0.25\n20.0,2,10.0,1.75\n"
PLAIN = "\ufeffarrival_s,prompt_tokens,output_tokens\n7,10,1\n\n8.5,20,2\n"
GOOD = {
    "azure": AZURE,
    "azure-2024": AZURE_2024,
    "mooncake": MOONCAKE,
    "burstgpt": BURST_6,
    "burstgpt-8": BURST_8,
    "vidur": VIDUR,
    "vidur-more": VIDUR_MORE,
    "csv": PLAIN,
    "csv-quoted": '"arrival_s","prompt_tokens","output_tokens"\n"7","10","1"\n8.5,20,"2"\n',
    "csv-comma": '"kv, rate",arrival_s,prompt_tokens,output_tokens,"a ""b"""\n7,0,10,1,9\n8,1.5,20,2,"9, ""x"""\n',
    "azure-quoted": '"TIMESTAMP","ContextTokens","GeneratedTokens"\n'
    '"2023-11-16 00:00:00",10,1\n"2023-11-16 00:00:01.5",20,2\n',
    "burstgpt-crlf": BURST_6.replace("\n", "\r\n"),
    "vidur-bom": "\ufeff" + VIDUR,
    "mooncake-bom": "\ufeff" + MOONCAKE.replace("\n", "\r\n\r\n"),
    "mooncake-s": MOONCAKE.replace("3000", "3").replace("4500", "4.5"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", GOOD)
def test_every_format_is_found_and_read(kind, packed, tmp_path):
    path = tmp_path / ("trace.gz" if packed else "trace.txt")
    data = GOOD[kind].encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    read = [from_trace(str(path), format=kind if kind == "mooncake-s" else kind.partition("-")[0])]
    if kind != "mooncake-s":
        read.append(from_trace(path))
    for w in read:
        rows = w.arrivals.rows
        assert rows.arrival_s == pytest.approx([0.0, 1.5], abs=1e-6)
        assert rows.prompt_tokens.tolist() == [10, 20] and rows.output_tokens.tolist() == [1, 2]
        assert w.name == "trace" and w.source
        assert load(str(path), w.description.partition("(")[2].partition(")")[0]).arrivals.rows is not None
        assert (w.max_prompt_tokens, w.max_output_tokens) == (20, 2)
        assert w.mean_rate_rps == pytest.approx(2 / 3)


def test_a_trace_is_replayed_scaled_and_resampled(tmp_path):
    path = tmp_path / "t.csv"
    times = np.cumsum(np.random.default_rng(0).exponential(0.5, 300))
    lines = [f"{x!r},{i + 1},{i + 2}" for i, x in enumerate(times.tolist())]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]))
    w = from_trace(path)
    faithful = w.with_arrivals(replay(w.arrivals.rows, from_start=True)).sample(
        np.random.default_rng(0), n=300
    )
    assert faithful.arrival_s == pytest.approx(times - times[0])
    assert faithful.prompt_tokens.tolist() == list(range(1, 301))
    r = w.with_rate(20.0).sample(np.random.default_rng(1), horizon_s=500.0)
    assert len(r.arrival_s) / 500.0 == pytest.approx(20.0, rel=0.02)
    assert np.array_equal(r.output_tokens - r.prompt_tokens, np.ones(len(r.request_class)))
    mixed = w.with_arrivals(poisson(1.0)).sample(np.random.default_rng(2), n=1000)
    assert np.any(np.diff(mixed.prompt_tokens) < 0) and np.all(mixed.output_tokens == mixed.prompt_tokens + 1)


HEAD = "arrival_s,prompt_tokens,output_tokens\n"
BAD = {
    "empty file": ("", "is empty"),
    "blank lines": ("\n \n", "is empty"),
    "header alone": (HEAD, "is empty: a header"),
    "no number": (HEAD + "0,1,1\n1,x,1\n", "line 3, column 'prompt_tokens': 'x'"),
    "fraction": (HEAD + "0,1,1.5\n", "line 2, column 'output_tokens': '1.5'"),
    "negative tokens": (HEAD + "0,-4,1\n", "line 2, column 'prompt_tokens': '-4'"),
    "no output": (HEAD + "0,4,0\n", "line 2, column 'output_tokens': '0'"),
    "no prompt": (HEAD + "0,0,4\n", "line 2, column 'prompt_tokens': '0'"),
    "too many tokens": (HEAD + "0,3000000000,4\n", "line 2, column 'prompt_tokens'"),
    "nan tokens": (HEAD + "0,nan,4\n", "line 2, column 'prompt_tokens': 'nan'"),
    "nan time": (HEAD + "nan,1,1\n", "line 2, column 'arrival_s': 'nan'"),
    "infinite time": (HEAD + "inf,1,1\n", "line 2, column 'arrival_s': 'inf'"),
    "negative time": (HEAD + "-1,1,1\n", "line 2, column 'arrival_s': '-1'"),
    "empty value": (HEAD + "0,,1\n", "line 2, column 'prompt_tokens': ''"),
    "time goes back": (HEAD + "2,1,1\n3,1,1\n\n2.5,1,1\n", "line 5, column 'arrival_s': '2.5' is before"),
    "short row": (HEAD + "0,1,1\n1,5\n", "line 3, column 'output_tokens': missing"),
    "shorter than an extra column": (
        HEAD.replace("\n", ",note\n") + "0,1,1\n",
        "line 2, column 'note': missing, the row has 3 values and the header 4",
    ),
    "long row": (HEAD + "0,1,1\n1,5,6,7\n", "line 3, column 4: too many, the row has 4 values"),
    "open quote": (
        HEAD.replace("\n", ",note\n") + '0,10,5,"abc\n1,20,6,x\n2,20,6,y\n',
        "line 2, column 'note': a quote is opened here and not closed",
    ),
    "quote closed lines below": (
        HEAD.replace("\n", ",note\n") + '0,10,5,"abc\n1,20,6,x\n2,20,6,"\n',
        "line 2, column 'note': a quote is opened here and not closed",
    ),
    "open quote in the header": (
        'arrival_s,"prompt_tokens,output_tokens\n0,1,1\n',
        "line 1, column 2: a quote",
    ),
    "text after a quote": (HEAD + '0,"1"1,1\n', "line 2, column 'prompt_tokens': ',' expected after"),
    "text after a quote with a comma": (
        HEAD + '0,"1,2"1,1\n',
        "line 2, column 'prompt_tokens': ',' expected",
    ),
    "endless value": (HEAD + '0,1,"' + "1" * 140_000 + '"\n', "line 2, column 'output_tokens': field larger"),
    "column twice": (
        "arrival_s,prompt_tokens,output_tokens,arrival_s\n0,1,1,5\n",
        "line 1, column 'arrival_s': is there 2 times",
    ),
    "huge integer": (HEAD + "0," + "1" * 5000 + ",1\n", "line 2, column 'prompt_tokens': '1111111111"),
    "huge time": (HEAD + "1" * 5000 + ",1,1\n", "line 2, column 'arrival_s': '111111111"),
    "time beyond a float": (HEAD + "1e400,1,1\n", "line 2, column 'arrival_s': '1e400' is not a time"),
    "span beyond a float": (
        HEAD + "0,1,1\n1.7e308,1,1\n",
        "line 3, column 'arrival_s': '1.7e308' is not a time",
    ),
    "span without a rate": (HEAD + "0,1,1\n1e-320,1,1\n", "line 3, column 'arrival_s': all requests within"),
    "underscore": (HEAD + "0,1_0,1\n", "line 2, column 'prompt_tokens': '1_0'"),
    "other digits": (HEAD + "0,\u0661,1\n", "line 2, column 'prompt_tokens': '\u0661'"),
    "nul in a number": (HEAD + "0,1\0,1\n", "line 2, column 'prompt_tokens': '1\\x00'"),
    "nul bytes": ("\0" * 300, "line 1: no known format"),
    "column lacks": ("arrival_s,prompt_tokens\n0,1\n", "line 1: missing column 'output_tokens'"),
    "azure column lacks": (
        "TIMESTAMP,ContextTokens\n",
        "line 1: missing column 'GeneratedTokens' of the azure",
    ),
    "other header": ("a,b,c\n0,1,1\n", "line 1: no known format"),
    "azure bad time": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n",
        "line 2, column 'TIMESTAMP': 'noon'",
    ),
    "azure goes back": (AZURE + "2023-11-17 00:00:00,1,1\n", "line 4, column 'TIMESTAMP'"),
    "burstgpt failed request": (BURST_6 + "9,GPT-4,7,0,7,API log\n", "line 4, column 'Response tokens': '0'"),
    "vidur negative": (VIDUR + "2,1,-1\n", "line 4, column 'num_decode_tokens': '-1'"),
    "not json": (MOONCAKE + '{"timestamp": 5\n', "line 3, column"),
    "json list": (MOONCAKE + "[1]\n", "line 3, column 1: '[1]' is not a JSON object"),
    "json huge integer": (
        MOONCAKE + '{"timestamp": ' + "1" * 5000 + ', "input_length": 4, "output_length": 1}\n',
        "line 3, column 'timestamp': '11111111",
    ),
    "json huge count": (
        MOONCAKE + '{"timestamp": 9000, "input_length": 4, "output_length": ' + "1" * 5000 + "}\n",
        "line 3, column 'output_length': '11111111",
    ),
    "json beyond a float": (
        MOONCAKE + '{"timestamp": 1e400, "input_length": 4, "output_length": 1}\n',
        "line 3, column 'timestamp': '1e400'",
    ),
    "json nan": (
        MOONCAKE + '{"timestamp": NaN, "input_length": 4, "output_length": 1}\n',
        "line 3, column 'timestamp': 'NaN'",
    ),
    "json infinity": (
        MOONCAKE + '{"timestamp": 9000, "input_length": Infinity, "output_length": 1}\n',
        "line 3, column 'input_length': 'Infinity'",
    ),
    "json nested": (MOONCAKE + "[" * 100_000 + "\n", "line 3, column 1: nested too deeply"),
    "json nested value": (
        MOONCAKE + '{"timestamp": ' + "[" * 100_000 + "\n",
        "line 3, column 1: nested too deeply",
    ),
    "json key twice": (
        MOONCAKE + '{"timestamp": 9000, "timestamp": 9001, "input_length": 4, "output_length": 1}\n',
        "line 3, column 'timestamp': is there twice",
    ),
    "json object as a value": (
        MOONCAKE + '{"timestamp": {}, "input_length": 4, "output_length": 1}\n',
        "line 3, column 'timestamp': a dict is not a time",
    ),
    "json key lacks": (
        MOONCAKE + '{"timestamp": 9000, "input_length": 4}\n',
        "line 3, column 'output_length': missing",
    ),
    "json text": (
        MOONCAKE + '{"timestamp": 9000, "input_length": "a", "output_length": 1}\n',
        "line 3, column 'input_length'",
    ),
    "json null": (
        MOONCAKE + '{"timestamp": null, "input_length": 4, "output_length": 1}\n',
        "line 3, column 'timestamp'",
    ),
    "json true": (
        MOONCAKE + '{"timestamp": 9000, "input_length": true, "output_length": 1}\n',
        "column 'input_length': True",
    ),
    "json goes back": (
        MOONCAKE + '{"timestamp": 3, "input_length": 4, "output_length": 1}\n',
        "line 3, column 'timestamp'",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_with_its_place(kind, tmp_path):
    text, message = BAD[kind]
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(TraceError) as error:
        from_trace(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 400 and "\n" not in str(error.value)


MORE = "arrival_s,prompt_tokens,priority,output_tokens,session,predicted_tokens\n"


def test_a_table_may_tell_more_of_its_requests(tmp_path):
    path = tmp_path / "more.csv"
    path.write_text(MORE + "0,10,-3,1,7,2\n1,20,4,2,7,5\n")
    rows = from_trace(path).arrivals.rows
    assert rows.priority.tolist() == [-3, 4]
    assert rows.session.tolist() == [7, 7]
    assert rows.predicted_tokens.tolist() == [2, 5]


def test_a_column_without_any_value_is_not_there(tmp_path):
    path = tmp_path / "more.csv"
    path.write_text(MORE + "0,10,,1,7, \n1,20,,2,8,\n")
    rows = from_trace(path).arrivals.rows
    assert rows.priority is None and rows.predicted_tokens is None
    assert rows.session.tolist() == [7, 8]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,20,4,2,-1,5", "line 3, column 'session': '-1' is not a whole number from 0 to 2147483647"),
        ("1,20,0.5,2,1,5", "line 3, column 'priority': '0.5' is not a whole number from -2147483648"),
        ("1,20,0,2,1,0", "line 3, column 'predicted_tokens': '0' is not a whole number from 1"),
        ("1,20,,2,1,5", "line 3, column 'priority': '' is not a whole number"),
        ("1,20,0,2,,5", "line 3, column 'session': '' is not a whole number"),
    ],
)
def test_more_that_is_wrong_is_refused_with_its_place(tmp_path, row, message):
    path = tmp_path / "more.csv"
    path.write_text(MORE + "0,10,0,1,7,2\n" + row + "\n")
    with pytest.raises(TraceError, match=re.escape(message)):
        from_trace(path)


def test_a_value_below_rows_that_have_none_is_refused(tmp_path):
    path = tmp_path / "more.csv"
    path.write_text(MORE + "0,10,,1,7,2\n1,20,4,2,7,5\n")
    with pytest.raises(TraceError, match="line 3, column 'priority': '4' where the first row has no value"):
        from_trace(path)


def test_files_that_cannot_be_read(tmp_path):
    for read in (from_trace, lambda path: load(str(path))):
        with pytest.raises(TraceError, match=r"none\.csv: no such file"):
            read(tmp_path / "none.csv")
    with pytest.raises(TraceError, match=r"^none\.jsonl: no such file"):
        load("none.jsonl")
    with pytest.raises(TraceError, match="cannot be read: Is a directory"):
        from_trace(tmp_path)
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress((HEAD + "0,1,1\n" * 1000).encode())[:40])
    with pytest.raises(TraceError, match="cannot be read"):
        from_trace(cut)
    plain = tmp_path / "plain.csv"
    plain.write_text(PLAIN)
    with pytest.raises(InvalidArgument, match="format='parquet'"):
        from_trace(plain, format="parquet")
    with pytest.raises(TraceError, match="line 1: missing column 'TIMESTAMP'"):
        from_trace(plain, format="azure")
    with pytest.raises(TraceError, match="line 1, column 1: not JSON"):
        from_trace(plain, format="mooncake")


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (HEAD.encode() + b"0,1,1\n1,\xff2,1\n", "line 3, column 3"),
        (HEAD.encode() + "0,1,1\n1,\u00e4,".encode() + b"\xc3\n", "line 3, column 5"),
        (MOONCAKE.encode() + b'{"\xe4": 1}\n', "line 3, column 3"),
        (PLAIN.removeprefix("\ufeff").encode("utf-16"), "line 1, column 1"),
    ],
)
def test_bytes_that_are_no_utf8_are_refused_with_their_place(data, place, tmp_path):
    path = tmp_path / "binary.csv"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=f"{place}: is not UTF-8 text"):
        from_trace(path)


@pytest.mark.parametrize(
    ("timestamps", "seconds"),
    [
        ([0, 1, 2, 3], True),
        ([0, 0.4, 1.3, 7], True),
        ([1700000000, 1700000003, 1700000009], True),
        ([0, 0, 0, 3000, 3000], False),
        ([0, 11, 25, 40], False),
        ([5, 5, 5], False),  # all at once: no rate to judge by
    ],
)
def test_timestamps_of_mooncake_that_are_plainly_seconds_get_a_warning(timestamps, seconds, tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [json.dumps({"timestamp": t, "input_length": 10, "output_length": 1}) for t in timestamps]
    path.write_text("\n".join(lines))
    spans = [t - timestamps[0] for t in timestamps]
    if seconds:
        with pytest.warns(
            UserWarning, match=r"t\.jsonl: .* if they are seconds, read it with format='mooncake-s'"
        ):
            found = from_trace(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if not seconds:
            found = from_trace(path)
        assert found.arrivals.rows.arrival_s == pytest.approx([t / 1000 for t in spans], abs=1e-9)
        assert from_trace(path, "mooncake").arrivals.rows.arrival_s == pytest.approx(
            found.arrivals.rows.arrival_s
        )
        assert from_trace(path, "mooncake-s").arrivals.rows.arrival_s == pytest.approx(spans, abs=1e-9)
        assert load(str(path), "mooncake-s").arrivals.rows.arrival_s == pytest.approx(spans, abs=1e-9)


COLUMNS = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "mooncake": ("timestamp", "input_length", "output_length"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "vidur": ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    "csv": ("arrival_s", "prompt_tokens", "output_tokens"),
}
TOKENS = st.integers(1, 2**31 - 1)
CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n"), max_size=12)
ONE_FILE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def tables(draw):
    """A table with further columns, as the bytes of a file in one of the formats, and its arrival times (s) and lengths."""
    kind = draw(st.sampled_from(sorted(COLUMNS)))
    second = 1000.0 if kind == "mooncake" else 1.0
    gaps = draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=12))
    micros = np.cumsum(gaps).tolist()
    lengths = [draw(st.tuples(TOKENS, TOKENS)) for _ in gaps]
    names = draw(st.lists(CELL.filter(lambda x: "{" not in x), max_size=3))
    names = [name for name in names if name.strip() not in COLUMNS[kind]]
    extra = [[draw(CELL) for _ in names] for _ in gaps]
    if kind == "azure":
        start = datetime(2023, 11, 16, 18, tzinfo=UTC)
        times = [str(start + timedelta(microseconds=x)) for x in micros]
    else:
        times = [x * second / 1e6 for x in micros]
    if kind == "mooncake":
        rows = [
            {**dict(zip(names, more, strict=True)), **dict(zip(COLUMNS[kind], (t, *pair), strict=True))}
            for t, pair, more in zip(times, lengths, extra, strict=True)
        ]
        text = draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(map(json.dumps, rows))
    else:
        order = draw(st.permutations(range(3 + len(names))))
        file = io.StringIO()
        writer = csv.writer(
            file,
            quoting=draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC])),
            lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"])),
        )
        header = [*COLUMNS[kind], *names]
        writer.writerow([header[i] for i in order])
        for t, pair, more in zip(times, lengths, extra, strict=True):
            row = [t, *pair, *more]
            writer.writerow([row[i] for i in order])
        text = file.getvalue()
    data = (draw(st.sampled_from(["", "\ufeff"])) + text).encode()
    return gzip.compress(data) if draw(st.booleans()) else data, [x / 1e6 for x in micros], lengths


@ONE_FILE
@given(tables())
def test_a_written_table_read_back_is_the_same(tmp_path, table):
    data, times_s, lengths = table
    path = tmp_path / "t"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        rows = from_trace(path).arrivals.rows
    assert rows.arrival_s == pytest.approx([t - times_s[0] for t in times_s], rel=1e-12, abs=1e-6)
    assert list(zip(rows.prompt_tokens.tolist(), rows.output_tokens.tolist(), strict=True)) == lengths


def told(data, kind):
    """What a file without quotes, or with JSON, says: (arrival, prompt, output) of each row; None if it must be refused."""
    try:
        text = data.decode("utf-8-sig")
        lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip(" \t")]
        if kind == "mooncake":
            objects = [json.loads(line) for line in lines]
            cells = [[x[name] for name in COLUMNS[kind]] for x in objects]
            if not all(type(value) in (int, float) for row in cells for value in row):
                return None
        else:
            grid = [line.split(",") for line in lines]
            if any(cell.startswith('"') or len(row) != len(grid[0]) for row in grid for cell in row):
                return None
            header = [name.strip() for name in grid[0]]
            cells = [[row[header.index(name)].strip(" \t") for name in COLUMNS[kind]] for row in grid[1:]]
            if not all(re.fullmatch(r"[-+0-9.eE]+", value) for row in cells for value in row):
                return None
        rows = [tuple(float(Decimal(str(value))) for value in row) for row in cells]
    except (ValueError, KeyError, TypeError, InvalidOperation):
        return None
    whole = all(x.is_integer() and 1 <= x < 2**31 for _, *pair in rows for x in pair)
    times = [row[0] / (1000.0 if kind == "mooncake" else 1.0) for row in rows]
    return rows if rows and whole and times == sorted(times) and times[0] >= 0 and times[-1] <= 1e12 else None


@settings(ONE_FILE, max_examples=600)
@given(
    st.sampled_from(["burstgpt", "mooncake", "vidur", "csv"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=1),
)
def test_a_changed_byte_gives_what_is_written_or_an_error(tmp_path, kind, where, byte):
    good = {
        "burstgpt": BURST_6,
        "mooncake": MOONCAKE,
        "vidur": VIDUR_MORE,
        "csv": HEAD.replace("\n", ",note\n") + "7,10,1,x\n8.25,20,2e1,y\n8.25,30,3,\n",
    }[kind].encode()
    at = int(where * len(good))
    changed = good[:at] + byte + good[at + 1 :]
    path = tmp_path / "t"
    path.write_bytes(changed)
    expected = told(changed, kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            rows = from_trace(path).arrivals.rows
    except TraceError:
        assert expected is None
        return
    assert expected is not None
    second = 1000.0 if kind == "mooncake" else 1.0
    assert rows.arrival_s == pytest.approx([(t - expected[0][0]) / second for t, _, _ in expected])
    assert rows.prompt_tokens.tolist() == [p for _, p, _ in expected]
    assert rows.output_tokens.tolist() == [o for _, _, o in expected]


@settings(ONE_FILE, max_examples=300)
@given(
    st.sampled_from([*GOOD.values(), *(text for text, _ in BAD.values() if len(text) < 1000)]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=3)), max_size=4),
    st.booleans(),
)
def test_a_damaged_file_gives_a_trace_or_a_trace_error(tmp_path, text, changes, packed):
    data = bytearray(gzip.compress(text.encode()) if packed else text.encode())
    for where, new in changes:
        at = int(where * len(data))
        data[at : at + len(new)] = new
    path = tmp_path / "t"
    path.write_bytes(bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            rows = from_trace(path).arrivals.rows
        except TraceError as error:
            assert str(path) in str(error)
            return
    assert len(rows) > 0 and np.all(np.diff(rows.arrival_s) >= 0)
