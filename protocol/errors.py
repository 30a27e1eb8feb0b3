"""Every error that Blindsight raises on purpose, in one tree.

    BlindsightError
    ├── UsageError            a flag, a setting or a path that cannot work        exit 2
    │   └── DataError         a folder, line or image of the user's data          exit 2
    ├── ProtocolError         foreign bytes that break docs/protocol.md           exit 3
    │   ├── MalformedMessage  wrong length, count, range or an unset field
    │   ├── UnknownPreset     a parameter set that this side does not speak
    │   ├── ReleaseMismatch   the other side holds another model release
    │   ├── EpochMismatch     the index was rebuilt since it was described
    │   └── NotAdmitted       a stranger, a revoked member, or one without that right
    ├── PolicyError           what this party's own policy does not allow         exit 8
    ├── LimitReached          more at once, or more a day, than is served         exit 9
    ├── TrainingError         a round that cannot be used: NaN, no quorum         exit 4
    │   └── BudgetError       a round that would exceed the privacy budget        exit 4
    ├── ServiceError          a service that cannot start, or does not answer     exit 5
    └── StorageError          a disk that is full, a file that is damaged         exit 6

Each class has a stable ``code`` (for programs), an ``exit_code`` (for shells) and a
``status`` (the gRPC status code's name). Each instance has a ``message`` that says what was
wrong, what was expected and what was got, and a ``hint`` that says what to do next.
"""

from typing import ClassVar


class BlindsightError(Exception):
    """Root of the tree. ``str(error)`` is the message alone; the hint stands apart."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    status: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BlindsightError):
    """The user asked for something that cannot be done as asked."""

    code = "usage"
    exit_code = 2
    status = "INVALID_ARGUMENT"


class DataError(UsageError):
    """The user's images or captions cannot be read or used."""

    code = "data"


class ProtocolError(BlindsightError):
    """Another party sent something that breaks the protocol."""

    code = "protocol"
    exit_code = 3
    status = "INVALID_ARGUMENT"


class MalformedMessage(ProtocolError):
    """A message whose lengths, counts, ranges or fields are not what was agreed."""

    code = "malformed_message"


class UnknownPreset(ProtocolError):
    """A parameter set that this side does not speak."""

    code = "unknown_preset"
    status = "FAILED_PRECONDITION"


class ReleaseMismatch(ProtocolError):
    """The two sides hold different model releases; their embeddings do not compare."""

    code = "release_mismatch"
    status = "FAILED_PRECONDITION"


class EpochMismatch(ProtocolError):
    """The index changed after it was described; describe it again and repeat."""

    code = "epoch_mismatch"
    status = "ABORTED"


class NotAdmitted(ProtocolError):
    """The roster does not grant this to whoever asks."""

    code = "not_admitted"
    status = "PERMISSION_DENIED"


class PolicyError(BlindsightError):
    """Something was asked for that this party's own policy does not allow."""

    code = "policy"
    exit_code = 8
    status = "PERMISSION_DENIED"


class LimitReached(BlindsightError):
    """More was asked for than a service gives to one party; ``retry_after_ms`` says when again."""

    code = "limit_reached"
    exit_code = 9
    status = "RESOURCE_EXHAUSTED"
    retry_after_ms: int | None = None


class TrainingError(BlindsightError):
    """A round of training that gave nothing usable."""

    code = "training"
    exit_code = 4
    status = "FAILED_PRECONDITION"


class BudgetError(TrainingError):
    """A round that would spend more of the records' privacy than the institution allows."""

    code = "privacy_budget"


class ServiceError(BlindsightError):
    """A service that cannot start, or that does not answer."""

    code = "service"
    exit_code = 5
    status = "UNAVAILABLE"


class StorageError(BlindsightError):
    """A file that cannot be written, or one that is damaged."""

    code = "storage"
    exit_code = 6
    status = "INTERNAL"
