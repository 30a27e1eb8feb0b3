"""Noise for differential privacy: whole numbers, exactly Gaussian, from cryptographic randomness.

Floating-point Gaussians give their input away in the low bits (Mironov, CCS 2012). So what is to
be hidden is laid on a grid first, as whole numbers, and what is added is the discrete Gaussian of
Canonne, Kamath and Steinke (arXiv:2004.00010): P(x) proportional to exp(-x^2 / 2 SIGMA^2) over the
integers. Their algorithms 1 to 3 are used as they stand, and with a SIGMA that is a power of two
every probability in them is a fraction of small integers: no float is involved, and nothing is
rounded.

Bytes come from AES-256 in counter mode under a key from the operating system. The time that a
draw takes depends on the values drawn, as in every rejection sampler; the other parties see the
time of a whole round alone.
"""

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocol.compiled import kernel

_BITS = 20
#: The parameter of the noise. Always the same: a mechanism chooses its grid, not its SIGMA.
SIGMA = 1 << _BITS
_ONE = 2 * _BITS + 1  # probabilities are multiples of 2^-41, for 2 SIGMA^2 = 2^41
_WORDS_A_SAMPLE = 20
_MOST_WORDS = 1 << 17


class DiscreteGaussian:
    """A source of noise; not for two threads."""

    def __init__(self) -> None:
        self._stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def draw(self, count: int) -> NDArray[np.int64]:
        """Independent samples, int64 [count]; their magnitude passes 2^31 never in practice."""
        out = np.empty(count, np.int64)
        words, done = np.empty(0, np.uint64), 0
        while done < count:
            wanted = min(_WORDS_A_SAMPLE * (count - done) + 256, _MOST_WORDS)
            fresh = np.frombuffer(self._stream.update(bytes(8 * wanted)), np.uint64)
            # A sample that these words do not finish begins again with the same ones: to drop
            # them would favour the samples that need few.
            words = np.concatenate([words, fresh])
            filled, used = _fill(words, out[done:])
            done, words = done + filled, words[used:]
        return out


@kernel
def _fill(words, out):  # type: ignore[no-untyped-def]
    """Samples until words or places run out; returns how many of each were used."""
    used = 0
    for i in range(out.size):
        sample, at = _sample(words, used)
        if at > words.size:
            return i, used
        out[i], used = sample, at
    return out.size, used


@kernel
def _sample(words, at):  # type: ignore[no-untyped-def]
    """Algorithm 3 with t = SIGMA: a discrete Laplace, accepted with exp(-(|y| - SIGMA)^2 / 2 s^2).

    Returns the sample and the place of the next word, which is past the end if words ran out.
    """
    while at < words.size:
        magnitude, negative, at = _laplace(words, at)
        if at > words.size:
            break
        away = abs(magnitude - SIGMA)
        square = away * away
        accepted = True
        for _ in range(square >> _ONE):
            accepted, at = _bernoulli(words, at, 1 << _ONE)
            if not accepted:
                break
        if accepted:
            accepted, at = _bernoulli(words, at, square & ((1 << _ONE) - 1))
        if at > words.size:
            break
        if accepted:
            return (-magnitude if negative else magnitude), at
    return 0, words.size + 1


@kernel
def _laplace(words, at):  # type: ignore[no-untyped-def]
    """Algorithm 2 with t = SIGMA, s = 1."""
    while at < words.size:
        word = words[at]
        at += 1
        low = np.int64(word >> np.uint64(64 - _BITS))
        negative = word & np.uint64(1) == np.uint64(1)
        accepted, at = _bernoulli(words, at, low << (_ONE - _BITS))
        if not accepted:
            continue
        high = 0
        accepted, at = _bernoulli(words, at, 1 << _ONE)
        while accepted:
            high += 1
            accepted, at = _bernoulli(words, at, 1 << _ONE)
        if negative and high == 0 and low == 0:
            continue  # there is one zero and not two
        return low + (high << _BITS), negative, at
    return 0, False, words.size + 1


@kernel
def _bernoulli(words, at, numerator):  # type: ignore[no-untyped-def]
    """Algorithm 1: true with probability exp(-numerator / 2^41), for 0 <= numerator <= 2^41.

    In a word the low 41 bits decide "with probability numerator / 2^41", the other 23 "one in k".
    """
    k = 1
    while at < words.size:
        word = words[at]
        at += 1
        rest = np.int64(word >> np.uint64(_ONE))
        whole = 1 << (64 - _ONE)
        if rest >= whole - whole % k:
            continue  # the last part would favour small remainders
        if rest % k or np.int64(word & np.uint64((1 << _ONE) - 1)) >= numerator:
            return k % 2 == 1, at
        k += 1
    return False, words.size + 1
