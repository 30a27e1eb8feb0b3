"""The real port under attack for some seconds; ``python -m tests.fuzz --port`` does it for long."""

from collections import Counter

import pytest

from tests.fuzz.port import MEMORY, Found, _judge, fuzz_port


@pytest.mark.e2e
def test_an_attack_on_the_port_holds_nobody_up() -> None:
    found = fuzz_port(seconds=4.0, messages=4000)
    assert not found.broken, str(found)
    assert found.messages > 20 and found.codes["INVALID_ARGUMENT"]
    assert found.audit_bytes < 800 * (found.codes["OK"] + 100), "what is refused is counted"


def test_what_is_broken_is_noticed() -> None:
    def broken(code: str = "OK", wait: float = 0.1, memory: int = 0, log: str = "") -> list[str]:
        found = Found(codes=Counter([code]), honest=[wait], memory=[0, memory], files=[9, 9])
        _judge(found, log)
        return found.broken

    assert broken() == []
    assert broken(code="INTERNAL") and broken(wait=9.0) and broken(memory=MEMORY + 1)
    assert broken(log='{"level": "error", "error": "Traceback"}')
