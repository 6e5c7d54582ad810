"""The exact denoiser: marginals of masked tokens given all that is known, and the probability of what is known.

Sums over the hidden states of `llmgym.envs.unmask.process`, at phrases instead of tokens: a message for every end of a phrase
runs backwards through the block, a law of the hidden state forwards. Likelihoods are relative to that of a match, so nothing has
to be rescaled within a block.

`known` is always int16 [positions], the tokens of one block of one stream, -1 where it is masked. Positions of other streams are
left out: streams are independent.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.rng import substream, uniform
from llmgym.envs.unmask.process import Process

Floats = NDArray[np.float64]
Known = NDArray[np.int16]


@kernel
def messages(
    known: Known,
    lengths: NDArray[np.int64],
    words: NDArray[np.int64],
    back: Floats,
    miss: float,
    ends: Floats,
) -> None:
    """Write the probability of what is known from a position on, given that a phrase ended just before it.

    Args:
        known: tokens of the block, int16 [positions].
        lengths: tokens of each phrase, int64 [phrases].
        words: tokens of the phrases, int64 [phrases, LONGEST].
        back: probability of the phrase in the third index before that of the second, float64 [topics, phrases, phrases].
        miss: likelihood of a token that is not the phrase's, over that of one that is.
        ends: written, float64 [positions + 1 or more, topics, phrases].
    """
    positions, topics, phrases = known.shape[0], back.shape[0], back.shape[1]
    for z in range(topics):
        for p in range(phrases):
            ends[positions, z, p] = 1.0
    for t in range(positions - 1, -1, -1):
        for z in range(topics):
            for p in range(phrases):
                ends[t, z, p] = 0.0
        for p in range(phrases):
            length = lengths[p]
            like = 1.0
            for k in range(min(length, positions - t)):
                token = known[t + k]
                if token >= 0 and token != words[p, k]:
                    like *= miss
            for z in range(topics):
                mass = like
                if t + length < positions:
                    mass *= ends[t + length, z, p]
                for q in range(phrases):
                    ends[t, z, q] += back[z, p, q] * mass


@kernel(inline=True)
def _rest(
    known: Known, words: NDArray[np.int64], p: int, k: int, length: int, t: int, first: int, miss: float
) -> float:
    """Likelihood of what is known of a phrase from its place `first` on, if its place k is position t."""
    like = 1.0
    for j in range(first, min(length, k + known.shape[0] - t)):
        token = known[t + j - k]
        if token >= 0 and token != words[p, j]:
            like *= miss
    return like


@kernel
def evidence(
    known: Known,
    prior: Floats,
    lengths: NDArray[np.int64],
    words: NDArray[np.int64],
    miss: float,
    ends: Floats,
) -> float:
    """The probability of what is known of a block, over that of as many matches.

    Args:
        known: tokens of the block, int16 [positions].
        prior: law of the hidden state at its first position, float64 [topics, phrases, LONGEST].
        lengths: tokens of each phrase, int64 [phrases].
        words: tokens of the phrases, int64 [phrases, LONGEST].
        miss: likelihood of a token that is not the phrase's, over that of one that is.
        ends: messages of the block.

    Returns:
        A likelihood ratio, 0 or more.
    """
    total = 0.0
    for p in range(lengths.shape[0]):
        length = lengths[p]
        for k in range(length):
            like = _rest(known, words, p, k, length, 0, k, miss)
            end = length - k
            for z in range(prior.shape[0]):
                total += prior[z, p, k] * like * (ends[end, z, p] if end < known.shape[0] else 1.0)
    return total


@kernel
def weigh(
    known: Known,
    t: int,
    now: Floats,
    lengths: NDArray[np.int64],
    words: NDArray[np.int64],
    noise: float,
    miss: float,
    ends: Floats,
    law: Floats,
) -> None:
    """Write the law of a masked token, given all that is known of the block and before it.

    Args:
        known: tokens of the block, int16 [positions].
        t: the position, which is masked.
        now: law of the hidden state there, given what is known to its left, up to a factor, float64 [topics, phrases, LONGEST].
        lengths: tokens of each phrase, int64 [phrases].
        words: tokens of the phrases, int64 [phrases, LONGEST].
        noise: probability with which a token is any token.
        miss: likelihood of a token that is not the phrase's, over that of one that is.
        ends: messages of the block.
        law: written, probabilities, float64 [vocabulary].
    """
    vocabulary = law.shape[0]
    for v in range(vocabulary):
        law[v] = 0.0
    total = 0.0
    for p in range(lengths.shape[0]):
        length = lengths[p]
        for k in range(length):
            end = t + length - k
            mass = 0.0
            for z in range(now.shape[0]):
                mass += now[z, p, k] * (ends[end, z, p] if end < known.shape[0] else 1.0)
            mass *= _rest(known, words, p, k, length, t, k + 1, miss)
            law[words[p, k]] += mass
            total += mass
    for v in range(vocabulary):
        law[v] = (1.0 - noise) * law[v] / total + noise / vocabulary


@kernel
def advance(
    token: int,
    now: Floats,
    lengths: NDArray[np.int64],
    words: NDArray[np.int64],
    onward: Floats,
    miss: float,
    tail: Floats,
) -> None:
    """Go on to the next position: `now` becomes the law of the hidden state there.

    Args:
        token: the token here, -1 where it is masked.
        now: law of the hidden state here, up to a factor, float64 [topics, phrases, LONGEST]; written.
        lengths: tokens of each phrase, int64 [phrases].
        words: tokens of the phrases, int64 [phrases, LONGEST].
        onward: probability of the next phrase, float64 [topics, phrases, phrases].
        miss: likelihood of a token that is not the phrase's, over that of one that is.
        tail: scratch, float64 [phrases].
    """
    phrases = lengths.shape[0]
    for z in range(now.shape[0]):
        for p in range(phrases):
            length = lengths[p]
            if token >= 0:
                for k in range(length):
                    if words[p, k] != token:
                        now[z, p, k] *= miss
            tail[p] = now[z, p, length - 1]
            for k in range(length - 1, 0, -1):
                now[z, p, k] = now[z, p, k - 1]
            now[z, p, 0] = 0.0
        for p in range(phrases):
            for q in range(phrases):
                now[z, q, 0] += tail[p] * onward[z, p, q]


@kernel(inline=True)
def copy_law(source: Floats, out: Floats) -> None:
    """Write one law of the hidden state over another."""
    for z in range(out.shape[0]):
        for p in range(out.shape[1]):
            for k in range(out.shape[2]):
                out[z, p, k] = source[z, p, k]


@kernel
def normalise(now: Floats) -> float:
    """Divide a law by its sum, which is returned."""
    total = 0.0
    for z in range(now.shape[0]):
        for p in range(now.shape[1]):
            for k in range(now.shape[2]):
                total += now[z, p, k]
    for z in range(now.shape[0]):
        for p in range(now.shape[1]):
            for k in range(now.shape[2]):
                now[z, p, k] /= total
    return total


@kernel
def draw_text(
    key: np.uint64,
    first: int,
    step: int,
    known: Known,
    prior: Floats,
    lengths: NDArray[np.int64],
    words: NDArray[np.int64],
    onward: Floats,
    noise: float,
    vocabulary: int,
    miss: float,
    ends: Floats,
    out: NDArray[np.int16],
) -> None:
    """Draw a text of one stream, given its tokens that are known; masked positions of `out` are written.

    Args:
        key: of the draws.
        first: its first position in `out`.
        step: from one of its positions to the next.
        known: tokens of its first positions, int16 [positions]; the rest of the text is masked. It can be empty.
        prior: law of the hidden state at the first position, float64 [topics, phrases, LONGEST].
        lengths: tokens of each phrase, int64 [phrases].
        words: tokens of the phrases, int64 [phrases, LONGEST].
        onward: probability of the next phrase, float64 [topics, phrases, phrases].
        noise: probability with which a token is any token.
        vocabulary: number of tokens.
        miss: likelihood of a token that is not the phrase's, over that of one that is.
        ends: messages of the positions of `known`.
        out: the text, int16 [positions].
    """
    positions, topics, phrases = known.shape[0], prior.shape[0], prior.shape[1]
    total = 0.0
    # the same sum twice: the second time it ends at what was drawn
    drawn = math.inf
    topic, phrase, place = 0, 0, 0
    for attempt in range(2):
        left = drawn
        for z in range(topics):
            for p in range(phrases):
                for k in range(lengths[p]):
                    mass = prior[z, p, k]
                    if positions > 0:
                        mass *= _rest(known, words, p, k, lengths[p], 0, k, miss)
                        if lengths[p] - k < positions:
                            mass *= ends[lengths[p] - k, z, p]
                    if attempt == 0:
                        total += mass
                    elif left >= 0.0 and mass > 0.0:
                        topic, phrase, place = z, p, k
                        left -= mass
        drawn = total * uniform(substream(key, 1), first)
    for i in range(first, out.shape[0], step):
        t = (i - first) // step
        if t >= positions or known[t] < 0:
            token = words[phrase, place]
            if uniform(key, 3 * i) < noise:
                token = min(int(math.floor(uniform(key, 3 * i + 1) * vocabulary)), vocabulary - 1)
            out[i] = token
        place += 1
        t += 1
        if place == lengths[phrase]:
            before, place = phrase, 0
            total, drawn = 0.0, math.inf
            for attempt in range(2):
                left = drawn
                for q in range(phrases):
                    mass = onward[topic, before, q]
                    if t < positions:
                        mass *= _rest(known, words, q, 0, lengths[q], t, 0, miss)
                        if t + lengths[q] < positions:
                            mass *= ends[t + lengths[q], topic, q]
                    if attempt == 0:
                        total += mass
                    elif left >= 0.0 and mass > 0.0:
                        phrase = q
                        left -= mass
                drawn = total * uniform(key, 3 * i + 2)


@kernel
def marginals(
    known: Known,
    prior: Floats,
    lengths: NDArray[np.int64],
    words: NDArray[np.int64],
    onward: Floats,
    back: Floats,
    noise: float,
    miss: float,
    ends: Floats,
    now: Floats,
    tail: Floats,
    out: Floats,
) -> float:
    """Write the laws of all masked tokens of a block.

    Args:
        known: tokens of the block, int16 [positions].
        prior: law of the hidden state at its first position, float64 [topics, phrases, LONGEST].
        lengths: tokens of each phrase, int64 [phrases].
        words: tokens of the phrases, int64 [phrases, LONGEST].
        onward: probability of the next phrase, float64 [topics, phrases, phrases].
        back: `onward` with its last two axes exchanged, float64 [topics, phrases, phrases].
        noise: probability with which a token is any token.
        miss: likelihood of a token that is not the phrase's, over that of one that is.
        ends: scratch, float64 [positions + 1, topics, phrases].
        now: scratch, float64 [topics, phrases, LONGEST].
        tail: scratch, float64 [phrases].
        out: written, float64 [positions, vocabulary]; certain where the token is known.

    Returns:
        The probability of what is known, over that of as many matches.
    """
    messages(known, lengths, words, back, miss, ends)
    copy_law(prior, now)
    for t in range(known.shape[0]):
        if known[t] < 0:
            weigh(known, t, now, lengths, words, noise, miss, ends, out[t])
        else:
            for v in range(out.shape[1]):
                out[t, v] = 1.0 if v == known[t] else 0.0
        advance(known[t], now, lengths, words, onward, miss, tail)
    return evidence(known, prior, lengths, words, miss, ends)


class Denoiser:
    """The denoiser of one block of one stream, from Python.

    Args:
        process: the language.
        prior: law of the hidden state at the first position, float64 [topics, phrases, LONGEST]; None: that of a text's beginning.
    """

    def __init__(self, process: Process, prior: Floats | None = None) -> None:
        self.process = process
        self.prior = np.ascontiguousarray(process.start if prior is None else prior)
        self._back = np.ascontiguousarray(process.onward.transpose(0, 2, 1))

    def __call__(self, known: NDArray[np.integer]) -> tuple[Floats, float]:
        """The laws of all tokens given those that are known, and the log-probability of these.

        Args:
            known: tokens, int [positions]; -1 where masked.

        Returns:
            Probabilities, float64 [positions, vocabulary], and ln p(known), nats.
        """
        process = self.process
        tokens = np.ascontiguousarray(known, np.int16)
        topics, phrases = process.onward.shape[:2]
        out = np.zeros((len(tokens), process.vocabulary))
        found = marginals(
            tokens,
            self.prior,
            process.lengths,
            process.words,
            process.onward,
            self._back,
            process.noise,
            process.miss,
            np.zeros((len(tokens) + 1, topics, phrases)),
            np.zeros_like(self.prior),
            np.zeros(phrases),
            out,
        )
        log_known = math.log(found) if found > 0.0 else -math.inf
        return out, log_known + int((tokens >= 0).sum()) * math.log(process.match)

    def after(self, text: NDArray[np.integer]) -> "Denoiser":
        """The denoiser of the block after this one.

        Args:
            text: all tokens of this block, int [positions].
        """
        process, now = self.process, self.prior.copy()
        tail = np.zeros(process.onward.shape[1])
        for token in np.asarray(text).tolist():
            advance(token, now, process.lengths, process.words, process.onward, process.miss, tail)
            normalise(now)
        return Denoiser(process, now)
