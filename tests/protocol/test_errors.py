"""The tree of errors: programs hold on to its codes, shells to its exit codes."""

import pickle

import grpc
import pytest

from protocol import errors
from protocol.errors import BlindsightError

GOLDEN = {
    # class: (parent, code, exit code, gRPC status)
    "BlindsightError": ("Exception", "internal", 1, "INTERNAL"),
    "UsageError": ("BlindsightError", "usage", 2, "INVALID_ARGUMENT"),
    "DataError": ("UsageError", "data", 2, "INVALID_ARGUMENT"),
    "ProtocolError": ("BlindsightError", "protocol", 3, "INVALID_ARGUMENT"),
    "MalformedMessage": ("ProtocolError", "malformed_message", 3, "INVALID_ARGUMENT"),
    "UnknownPreset": ("ProtocolError", "unknown_preset", 3, "FAILED_PRECONDITION"),
    "ReleaseMismatch": ("ProtocolError", "release_mismatch", 3, "FAILED_PRECONDITION"),
    "EpochMismatch": ("ProtocolError", "epoch_mismatch", 3, "ABORTED"),
    "NotAdmitted": ("ProtocolError", "not_admitted", 3, "PERMISSION_DENIED"),
    "PolicyError": ("BlindsightError", "policy", 8, "PERMISSION_DENIED"),
    "LimitReached": ("BlindsightError", "limit_reached", 9, "RESOURCE_EXHAUSTED"),
    "TrainingError": ("BlindsightError", "training", 4, "FAILED_PRECONDITION"),
    "BudgetError": ("TrainingError", "privacy_budget", 4, "FAILED_PRECONDITION"),
    "ServiceError": ("BlindsightError", "service", 5, "UNAVAILABLE"),
    "StorageError": ("BlindsightError", "storage", 6, "INTERNAL"),
}
CLASSES: list[type[BlindsightError]] = [
    one
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, BlindsightError)
]
EVERY = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: str(kind.__name__))


def test_the_tree_is_the_promised_one() -> None:
    found = {
        kind.__name__: (kind.__bases__[0].__name__, kind.code, kind.exit_code, kind.status)
        for kind in CLASSES
    }
    assert found == GOLDEN


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in CLASSES}) == len(CLASSES)


@EVERY
def test_a_status_is_one_of_grpcs(kind: type[BlindsightError]) -> None:
    assert kind.status in grpc.StatusCode.__members__
    assert kind.status != "OK"


@EVERY
def test_an_exit_code_is_none_that_shells_use(kind: type[BlindsightError]) -> None:
    assert 1 <= kind.exit_code <= 63


@EVERY
def test_every_class_has_a_docstring_of_its_own(kind: type[BlindsightError]) -> None:
    own = vars(kind).get("__doc__")
    assert own and own.strip().endswith(".")
    assert sum(own == vars(other).get("__doc__") for other in CLASSES) == 1


@EVERY
def test_the_drawn_tree_has_every_class_and_its_exit_code(kind: type[BlindsightError]) -> None:
    drawn = [line.split() for line in (errors.__doc__ or "").splitlines()]
    lines = [words for words in drawn if kind.__name__ in words]
    assert len(lines) == 1
    parent = GOLDEN[kind.__name__][0]
    inherited = GOLDEN[parent][2] if parent in GOLDEN else 1
    said = int(lines[0][-1]) if "exit" in lines[0] else inherited
    assert said == kind.exit_code


@EVERY
def test_an_instance_has_a_message_and_a_hint(kind: type[BlindsightError]) -> None:
    error = kind("it is broken", "Mend it.")
    assert (str(error), error.message, error.hint) == ("it is broken", "it is broken", "Mend it.")
    assert kind("it is broken").hint == ""


@EVERY
def test_an_error_passes_between_processes_whole(kind: type[BlindsightError]) -> None:
    back = pickle.loads(pickle.dumps(kind("it is broken", "Mend it.")))
    assert type(back) is kind
    assert (back.message, back.hint) == ("it is broken", "Mend it.")
