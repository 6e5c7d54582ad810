"""Every reader on small files in the public formats, and every way a file can be bad."""

import gzip

import numpy as np
import pytest

from llmgym.errors import InvalidArgument, TraceError
from llmgym.workloads import from_trace, poisson, replay

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
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", GOOD)
def test_every_format_is_found_and_read(kind, packed, tmp_path):
    path = tmp_path / ("trace.gz" if packed else "trace.txt")
    data = GOOD[kind].encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    for w in (from_trace(path), from_trace(str(path), format=kind.partition("-")[0])):
        rows = w.arrivals.rows
        assert rows.arrival_s == pytest.approx([0.0, 1.5], abs=1e-6)
        assert rows.prompt_tokens.tolist() == [10, 20] and rows.output_tokens.tolist() == [1, 2]
        assert w.name == "trace" and w.source
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
    assert np.array_equal(r.output_tokens - r.prompt_tokens, np.ones(len(r.kind)))
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
    "json list": (MOONCAKE + "[1]\n", "line 3: '[1]' is not a JSON object"),
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
    assert str(path) in str(error.value) and message in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(TraceError, match="cannot be read"):
        from_trace(tmp_path / "none.csv")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress((HEAD + "0,1,1\n" * 1000).encode())[:40])
    with pytest.raises(TraceError, match="cannot be read"):
        from_trace(cut)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(HEAD.encode() + b"\xff\xfe\n")
    with pytest.raises(TraceError, match="not UTF-8"):
        from_trace(binary)
    plain = tmp_path / "plain.csv"
    plain.write_text(PLAIN)
    with pytest.raises(InvalidArgument, match="format='parquet'"):
        from_trace(plain, format="parquet")
    with pytest.raises(TraceError, match="line 1: missing column 'TIMESTAMP'"):
        from_trace(plain, format="azure")
