"""The noise that docs/protocol.md derives (sections 6 and 7), measured on real questions."""

from dataclasses import replace
from math import log2, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from client.institution.question import Question
from client.institution.randomness import Stream
from client.searcher.ckks import SealKey
from protocol.packing import Layout
from protocol.params import ERROR_STDDEV, FAST, PRIVATE, TAIL, Preset
from protocol.ring import U32
from protocol.scheme import Seeded
from tests.client.oracle import (
    Integers,
    centred,
    decrypted,
    inner_products,
    masked,
    ring_of,
)
from tests.client.unit_items import Items, packed, unit_vectors

DIM, SAMPLES = 64, 4096
"""So many scores, over several keys, that a standard deviation is known to two per cent."""

Floats = NDArray[np.float64]
BEYOND = 1.2
"""Of a bound that is 6 sigma a coefficient: 16,384 draws exceed it once in 30,000 times, and 7.2
sigma once in 10^8."""
presets = pytest.mark.parametrize("preset", [PRIVATE, FAST], ids=lambda preset: str(preset.name))
widths = pytest.mark.parametrize("width", [1, 4, 16, 64])


class Asked:
    """One question under one fresh key, with all that only a test may know."""

    def __init__(self, layout: Layout, items: Items, question: Items) -> None:
        self.key, self.layout = SealKey(layout.preset), layout
        self.public_keys: list[Seeded] = self.key.public_keys(layout.public_keys)
        polynomials = layout.question_polynomials(question)
        chunks = self.key.encrypt_query(polynomials)
        self.question = Question(layout, self.public_keys, chunks)
        flat = polynomials[:, : layout.chunk_width].reshape(-1)[:DIM].astype(object)
        self.scores: Integers = inner_products(items, flat, layout)

    def read(self, sums: U32) -> Integers:
        """The scores in sums that are in SEAL's order, integers [n]."""
        width = self.layout.chunk_width
        found = decrypted(self.key, sums, self.layout.preset)
        return found[:, width - 1 :: width].reshape(-1)


def computation_noise(layout: Layout, items: Items, blocks: U32, keys: int) -> Floats:
    """Sums as SEAL decrypts them, less the exact inner products: float64 [keys, n]."""
    arithmetic, noise = ring_of(layout.preset), []
    for number in range(keys):
        asked = Asked(layout, items, items[number])
        sums = arithmetic.to_seal_order(asked.question.multiply(blocks))
        noise.append((asked.read(sums) - asked.scores).astype(np.float64))
    return np.array(noise)


@presets
@widths
def test_computation_noise_is_as_derived(preset: Preset, width: int) -> None:
    """Section 6.1: sigma_B = 3.24 * 2^sp * sqrt(N/d2), and B six of them."""
    layout = Layout(preset, DIM, width, SAMPLES // 2)
    items = unit_vectors(preset.ring_degree if width == 1 else SAMPLES // 2, DIM)
    noise = computation_noise(layout, items, packed(layout, items), 2)
    sigma = ERROR_STDDEV * 2.0**preset.item_scale_bits * sqrt(preset.ring_degree / width)
    bound = preset.noise_bound(width)
    assert bound == pytest.approx(TAIL * sigma)
    assert noise.std() == pytest.approx(sigma, rel=0.1)
    assert abs(noise.mean()) < 6 * sigma / sqrt(noise.size)
    # The bound is 6 sigma a coefficient, and this is the largest of thousands.
    assert np.abs(noise).max() < BEYOND * bound


@pytest.mark.parametrize("width", [1, 16])
def test_masks_are_encryptions_of_zero_with_little_noise(width: int) -> None:
    """Section 6.1: sum of u*e over the keys, and e1*s: 3.24 * sqrt((keys + 1) * 2N/3)."""
    layout = Layout(PRIVATE, DIM, width, 1)
    asked = Asked(layout, unit_vectors(1, DIM), unit_vectors(1, DIM)[0])
    nothing = np.zeros((4, 2, len(PRIVATE.data_moduli), PRIVATE.ring_degree), np.uint32)
    mask = Stream().mask(len(nothing), layout)
    found = decrypted(asked.key, masked(nothing, asked.public_keys, mask, PRIVATE), PRIVATE)
    noise = found.astype(np.float64)
    expected = ERROR_STDDEV * sqrt((layout.public_keys + 1) * PRIVATE.ring_degree * 2 / 3)
    assert noise.std() == pytest.approx(expected, rel=0.1)
    assert noise.std() < 1e-3 * PRIVATE.noise_bound(width), "nothing beside the computation's"


@presets
@widths
def test_flooding_is_as_wide_as_it_says_and_hides_the_computation(
    preset: Preset, width: int
) -> None:
    """Section 6.2, from pairs of replies that differ in the flooding of their one mask alone.

    They differ by d units of c0, and E[d^2] is the flooding's variance plus 1/6: p(1-p) for
    rounding its fraction p of a unit, over flooding that is a whole number of units wide.
    """
    layout = Layout(preset, DIM, width, SAMPLES)
    items = unit_vectors(SAMPLES, DIM)
    asked, blocks = Asked(layout, items, items[0]), packed(layout, items)
    sums, units = asked.question.multiply(blocks), []
    for _ in range(16):
        mask = Stream().mask(len(blocks), layout)
        dry = replace(mask, flood=np.zeros_like(mask.flood))
        wet, bare = (asked.question.mask(0, sums.copy(), one).c0 for one in (mask, dry))
        difference = wet.astype(np.int64) - bare.astype(np.int64)
        units.append(centred(difference.astype(object), preset.reply_moduli[0]))
    unit, full = preset.data_modulus / preset.reply_moduli[0], 2.0 ** (preset.flood_bits + 1)
    assert full / unit == pytest.approx(round(full / unit), rel=0.01)
    measured = 2 * unit * sqrt(3 * ((np.array(units).astype(np.float64) ** 2).mean() - 1 / 6))
    assert measured == pytest.approx(full, rel=0.08)
    largest = np.abs(computation_noise(layout, items, blocks, 4)).max()
    # What is promised sets the flooding against 6 sigma, and this is the largest of thousands.
    assert log2(measured / largest) > preset.circuit_privacy_bits(width) - log2(BEYOND)


def reply_noise(preset: Preset) -> float:
    """Section 7: what a reply adds to an exact integer score, rms, as a score."""
    scale, whole = 2.0**preset.score_scale_bits, sqrt(preset.ring_degree * 2 / 3 / 12)
    c0, c1 = (preset.data_modulus / modulus / scale for modulus in preset.reply_moduli)
    flooding = 2.0**preset.flood_bits / sqrt(3) / scale
    switch = sqrt(whole**2 + 1 / 12) / preset.reply_scale
    return sqrt(flooding**2 + switch**2 + (c0 / sqrt(12)) ** 2 + (c1 * whole) ** 2)


@presets
@widths
def test_scores_err_as_derived(preset: Preset, width: int) -> None:
    """Section 7, on real replies: what is added to integer scores, and to scores in all."""
    layout = Layout(preset, DIM, width, SAMPLES)
    items = unit_vectors(SAMPLES, DIM)
    asked, blocks = Asked(layout, items, items[3]), packed(layout, items)
    reply = asked.question.answer(blocks, 0)
    scores = asked.key.decrypt_scores(layout, reply).reshape(-1)
    added = scores - (asked.scores / 2**preset.score_scale_bits).astype(np.float64)
    assert added.std() == pytest.approx(reply_noise(preset), rel=0.1)
    exact = items.astype(np.float64) @ items[3].astype(np.float64)
    item_rounding = 2.0**-preset.item_scale_bits / sqrt(12)
    assert (scores - exact).std() == pytest.approx(
        sqrt(reply_noise(preset) ** 2 + item_rounding**2), rel=0.1
    )
