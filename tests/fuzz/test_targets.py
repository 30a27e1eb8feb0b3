"""Every decoder of foreign bytes, fed with changed messages: the targets of ``make fuzz``."""

import time
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import of_bytes
from tests.fuzz.target import Broken, Target, check
from tests.fuzz.targets import TARGETS

# As the decoder has it: a warning of pydicom is no refusal.
pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")
every = pytest.mark.parametrize("name", TARGETS)


@every
def test_seeds_are_taken(name: str) -> None:
    """Else nothing but the first check of a decoder would ever be tried."""
    target = TARGETS[name]
    target.decode(target.seeds()[0])  # what is made once is not of this input
    for seed in target.seeds():
        assert len(seed) <= target.longest
        assert check(target, seed)


@every
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(0, 6))
def test_changed_messages_are_taken_or_refused(name: str, chance: int, changes: int) -> None:
    target, random = TARGETS[name], Random(chance)
    data = random.choice(target.seeds())
    for _ in range(changes):
        data = target.mutate(data, random)
    note(f"{len(data)} bytes: {data[:300]!r}")
    check(target, data[: target.longest])


@every
@settings(deadline=None, max_examples=20)
@given(st.binary(max_size=300))
@example(b"")
def test_any_bytes_are_taken_or_refused(name: str, data: bytes) -> None:
    check(TARGETS[name], data)


@pytest.mark.parametrize("name", [name for name in TARGETS if TARGETS[name].worst])
def test_what_is_made_to_take_much_takes_no_more(name: str) -> None:
    made = TARGETS[name].worst
    for data in made() if made else ():
        check(TARGETS[name], data)


def test_bounds_are_noticed() -> None:
    """The checks themselves can fail: memory, time, another error."""

    def taking(size: int) -> Target:
        return Target(lambda data: bytes(size), lambda: [b""], of_bytes, (), memory=1 << 20)

    def spinning(data: bytes) -> None:
        started = time.process_time()
        while time.process_time() - started < 0.15:
            pass

    check(taking(1 << 10), b"")
    with pytest.raises(Broken, match="of memory"):
        check(taking(1 << 24), b"")
    with pytest.raises(Broken, match="processor time"):
        check(Target(spinning, lambda: [b""], of_bytes, (), seconds=0.1), b"")
    with pytest.raises(ZeroDivisionError):
        check(Target(lambda data: 1 // 0, lambda: [b""], of_bytes, ()), b"")
