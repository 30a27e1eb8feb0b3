"""Parameter sets: what the presets claim, and that no unchecked one can be made."""

import re
from dataclasses import replace
from math import log2, prod, sqrt
from typing import Any

import pytest
import tenseal.sealapi as seal

from protocol.errors import UnknownPreset, UsageError
from protocol.params import FAST, MAX_MODULUS_BITS, PRESETS, PRIVATE, Preset, preset_by_name

WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)
BOTH = pytest.mark.parametrize("preset", [PRIVATE, FAST], ids=lambda preset: str(preset.name))


def is_prime(number: int) -> bool:
    """Miller and Rabin's test with bases that decide every number below 3.3e24."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(
        pow(base, odd, number) == 1
        or any(pow(base, odd << i, number) == number - 1 for i in range(twos))
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    )


# --- what the presets claim


@BOTH
def test_a_preset_is_within_128_bit_security(preset: Preset) -> None:
    assert log2(prod(preset.moduli)) <= 106
    assert MAX_MODULUS_BITS[preset.ring_degree] == 106


@BOTH
def test_primes_are_different_below_2_27_and_1_modulo_2n(preset: Preset) -> None:
    assert len(set(preset.moduli)) == len(preset.moduli)
    for modulus in preset.moduli:
        assert is_prime(modulus)
        assert modulus < 2**27
        assert modulus % (2 * preset.ring_degree) == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_private_floods_every_score_by_30_bits(width: int) -> None:
    assert PRIVATE.circuit_privacy_bits(width) >= 30


@pytest.mark.parametrize("width", WIDTHS)
def test_fast_floods_every_score_by_some_10_bits(width: int) -> None:
    assert 9 <= FAST.circuit_privacy_bits(width) < 14


@BOTH
@pytest.mark.parametrize("width", WIDTHS)
def test_privacy_is_flooding_over_the_noise_of_the_items_in_a_block(
    preset: Preset, width: int
) -> None:
    items = preset.ring_degree // width
    # Errors of variance 21/2 times items of norm 1 at the item scale, six deviations of it.
    bound = 6 * sqrt(10.5 * items * 4**preset.item_scale_bits)
    assert preset.noise_bound(width) == pytest.approx(bound, rel=1e-12)
    # Uniform on ±F, shifted by at most B: the distance is B over 2F.
    distance = bound / (2 * 2**preset.flood_bits)
    assert preset.circuit_privacy_bits(width) == pytest.approx(-log2(distance))


@BOTH
def test_the_last_prime_holds_no_data_and_the_first_carries_replies(preset: Preset) -> None:
    assert (*preset.data_moduli, preset.moduli[-1]) == preset.moduli
    assert preset.data_modulus == prod(preset.moduli[:-1])
    assert preset.reply_modulus == preset.moduli[0]


@BOTH
def test_the_extreme_scores_of_a_reply_do_not_wrap_around(preset: Preset) -> None:
    scale = 2**preset.score_scale_bits / prod(preset.data_moduli[1:])
    assert preset.reply_scale == pytest.approx(scale)
    flooding = 2**preset.flood_bits / prod(preset.data_moduli[1:])
    assert 1.9 * scale + flooding <= preset.reply_modulus / 2


@BOTH
def test_flooding_costs_less_than_a_thousandth_of_a_score(preset: Preset) -> None:
    assert 2.0**preset.flood_bits / 2.0**preset.score_scale_bits < 1e-3


def test_seal_makes_exactly_the_private_moduli() -> None:
    made = seal.CoeffModulus.Create(4096, [27, 27, 26, 26])
    assert tuple(int(modulus.value()) for modulus in made) == PRIVATE.moduli


@BOTH
def test_seal_itself_would_allow_more(preset: Preset) -> None:
    most = seal.CoeffModulus.MaxBitCount(preset.ring_degree, seal.SEC_LEVEL_TYPE.TC128)
    assert most >= 109 > log2(prod(preset.moduli))


# --- what is refused


def with_last(preset: Preset, modulus: int) -> dict[str, Any]:
    return {"moduli": (*preset.moduli[:-1], modulus)}


VIOLATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown ring degree": ({"ring_degree": 4095}, "ring degree"),
    "a ring degree whose security is unknown": ({"ring_degree": 16384}, "ring degree"),
    "a smaller ring": ({"ring_degree": 2048}, "128-bit security"),
    "a prime too many": ({"moduli": (*FAST.moduli, 67043329, 66994177)}, "128-bit security"),
    "107 bits": ({"moduli": (134111233, 134176769, 133857281, 67084289)}, "128-bit security"),
    "composite, 1 modulo 2N": (with_last(FAST, 81 * 8192 + 1), "not a prime"),
    "prime, not 1 modulo 2N": (with_last(FAST, 67108859), "not a prime"),
    "even": (with_last(FAST, 2**26), "not a prime"),
    "one": (with_last(FAST, 1), "not a prime"),
    "a prime of 28 bits": (with_last(FAST, 134250497), "below 2^27"),
    "a repeated prime": (with_last(FAST, FAST.moduli[0]), "different primes"),
    "one prime": ({"moduli": FAST.moduli[:1]}, "two or more"),
    "no prime": ({"moduli": ()}, "two or more"),
    "a question scale that wraps": ({"query_scale_bits": FAST.query_scale_bits + 1}, "wrap"),
    "an item scale that wraps": ({"item_scale_bits": FAST.item_scale_bits + 1}, "wrap"),
    "flooding that wraps": ({"flood_bits": 53}, "wrap"),
    "flooding too small": ({"flood_bits": 32}, "flooding"),
    "no flooding": ({"flood_bits": 0}, "flooding"),
}


def test_the_violating_numbers_are_what_they_are_said_to_be() -> None:
    assert not is_prime(81 * 8192 + 1) and is_prime(67108859) and 67108859 % 8192 != 1
    assert is_prime(134250497) and 134250497 % 8192 == 1 and 134250497 >> 27 == 1
    assert is_prime(133857281) and 133857281 % 8192 == 1
    assert 106 < log2(prod((134111233, 134176769, 133857281, 67084289))) < 107.1


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_every_violation_is_refused(violation: str) -> None:
    changes, says = VIOLATIONS[violation]
    with pytest.raises(UsageError, match=re.escape(says)):
        replace(FAST, **changes)


def test_the_preset_that_the_violations_start_from_is_valid() -> None:
    assert replace(FAST, name="another").moduli == FAST.moduli
    assert replace(FAST, flood_bits=33).circuit_privacy_bits(1) >= 8


@pytest.mark.parametrize(("largest", "fits"), [(1.89, False), (1.91, True)])
def test_a_score_of_just_1_9_fits(largest: float, fits: bool) -> None:
    # A modulus whose half is about ``largest`` at the score scale of 2^52.
    wanted = int(largest * 2**53 / FAST.moduli[1])
    prime = next(p for p in range(wanted - wanted % 8192 + 1, wanted * 2, 8192) if is_prime(p))
    assert prime * FAST.moduli[1] / 2**53 == pytest.approx(largest, abs=0.009)
    assert FAST.score_scale_bits == 52
    if fits:
        replace(FAST, moduli=(prime, *FAST.moduli[1:]))
    else:
        with pytest.raises(UsageError, match="wrap"):
            replace(FAST, moduli=(prime, *FAST.moduli[1:]))


def test_a_preset_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(AttributeError):
        PRIVATE.flood_bits = 0  # type: ignore[misc]


# --- names


@BOTH
def test_presets_are_found_by_name(preset: Preset) -> None:
    assert preset_by_name(preset.name) is preset


@pytest.mark.parametrize("name", ["", "Private", "private ", "fast\n", "toy", "x" * 5000])
def test_an_unknown_name_is_answered_with_the_known(name: str) -> None:
    with pytest.raises(UnknownPreset) as caught:
        preset_by_name(name)
    for known in PRESETS:
        assert known in caught.value.message
    assert caught.value.hint
    assert len(caught.value.message) < 200
