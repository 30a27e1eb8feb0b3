"""What an institution allows others to do beside its data: ``policy.toml``, its own file.

The coordinator ships the code that trains and the settings it trains with. Neither decides what is
allowed: this file does, and nothing that it does not name is allowed. A signature covers the code
and not the settings of a run, so the code checks these against the policy before it reads a pair.
"""

import difflib
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator

from client.institution import search_policy
from client.institution.policy_table import PolicyTable
from client.institution.search_policy import SearchPolicy
from protocol.bundle_approval import approved_by
from protocol.errors import PolicyError, UsageError
from protocol.files import read_bounded

if TYPE_CHECKING:  # it needs torch, and the service that reads this file does without
    from protocol.model.settings import TrainingSettings

Action = Literal["train", "evaluate", "statistics"]
_MAX_BYTES = 256 << 10
_HINT = "see the comments in policy.toml, and docs/operations.md"
_SHA256 = r"^[0-9a-f]{64}$"
_FINGERPRINT = r"^[0-9a-f]{4}(:[0-9a-f]{4}){15}$"

TEMPLATE = (
    """\
# What this institution allows beside its data. What is not allowed here is refused.
# It is read anew for every bundle and every round: no restart is needed.

[code]
# SHA-256 of each bundle of code that may run beside the data. Build it yourself from a checkout
# that you have reviewed, and compare: blindsight federation bundle --out bundle.fab
bundles = []
# Fingerprints of members whose signature on a bundle is as good.
signers = []

[training]
# Of "train", "evaluate" and "statistics" (sums of picture features).
actions = ["train", "evaluate"]
max-rounds = 100
max-local-epochs = 20
min-batch-size = 2
max-batch-size = 1024
# An update is part of a sum over so many institutions, this one among them, or it does not leave.
min-institutions = 3
# false: the coordinator may ask for this institution's update by itself.
require-secure-aggregation = true
# true: the coordinator may learn how many pairs there are, and exact recalls.
share-counts = false

[privacy]
# Noise of at least this deviation, in units of what one record can move; 0 asks for none.
min-noise = 0.0
# What all rounds of all runs together may spend; 0 sets no limit.
max-epsilon = 0.0
delta = 1e-6
# true: the coordinator is told what has been spent. It follows from the number of records.
share-epsilon = false
"""
    + search_policy.TEMPLATE
)


class CodePolicy(PolicyTable):
    """Which bundles of code may run here."""

    bundles: tuple[str, ...] = ()
    signers: tuple[str, ...] = ()

    @field_validator("bundles", "signers", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("bundles")
    @classmethod
    def _hashes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _each(value, _SHA256, "64 hexadecimal digits in small letters")

    @field_validator("signers")
    @classmethod
    def _fingerprints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _each(value, _FINGERPRINT, "a fingerprint of 16 groups of four digits")


class TrainingPolicy(PolicyTable):
    """What a run may ask for."""

    actions: frozenset[Action] = frozenset()
    max_rounds: int = Field(default=100, ge=1)
    max_local_epochs: int = Field(default=20, ge=1)
    min_batch_size: int = Field(default=2, ge=1)
    max_batch_size: int = Field(default=1024, ge=2)
    min_institutions: int = Field(default=3, ge=1)
    require_secure_aggregation: bool = True
    share_counts: bool = False

    @field_validator("actions", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return frozenset(value) if isinstance(value, list) else value


class PrivacyPolicy(PolicyTable):
    """The least noise, the most that may be spent, and who is told."""

    min_noise: float = Field(default=0.0, ge=0.0)
    max_epsilon: float = Field(default=0.0, ge=0.0)
    delta: float = Field(default=1e-6, gt=0.0, lt=0.1)
    share_epsilon: bool = False


class Policy(PolicyTable):
    """The whole file. Without a table, nothing of what it governs is allowed."""

    code: CodePolicy = CodePolicy()
    training: TrainingPolicy = TrainingPolicy()
    privacy: PrivacyPolicy = PrivacyPolicy()
    search: SearchPolicy = SearchPolicy()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file. Raises UsageError that names the line and what is known there."""
        try:
            text = read_bounded(path, _MAX_BYTES, _HINT).decode()
            return cls.model_validate(tomllib.loads(text))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}", _HINT) from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text", _HINT) from error
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path}: {error}", _HINT) from error
        except ValidationError as error:
            raise UsageError(f"{path}{_said(cls, error, text)}", _HINT) from error

    def approve_bundle(self, sha256: str, approvals: str = "") -> None:
        """Raises PolicyError unless this bundle is listed, or a listed signer approved it.

        ``approvals``: what ``protocol.bundle_approval`` makes, as the run brought it.
        """
        if sha256 in self.code.bundles:
            return
        signers = {found.fingerprint for found in approved_by(sha256, approvals)}
        if not signers & set(self.code.signers):
            raise PolicyError(
                f"the bundle {sha256} is not approved by this institution's policy",
                "review it, then list its hash in [code] of policy.toml",
            )

    def check_run(self, settings: "TrainingSettings", action: Action) -> None:
        """Raises PolicyError for the first thing that a run asks for and may not have."""
        training = self.training
        if action not in training.actions:
            raise _refused("actions", f"one of {sorted(training.actions)}", action)
        for name, asked, least, most in (
            ("rounds", settings.rounds, 1, training.max_rounds),
            ("local-epochs", settings.local_epochs, 1, training.max_local_epochs),
            ("batch-size", settings.batch_size, training.min_batch_size, training.max_batch_size),
        ):
            if not least <= asked <= most:
                raise _refused(name, f"{least} to {most}", asked)
        if settings.privacy_noise < self.privacy.min_noise:
            least_noise = f"at least {self.privacy.min_noise:g}"
            raise _refused("privacy-noise", least_noise, settings.privacy_noise)

    def check_sum(self, masked: bool, institutions: int) -> None:
        """Raises PolicyError where an update would leave alone or among too few."""
        if not masked and self.training.require_secure_aggregation:
            raise _refused("secure-aggregation", "true", False)
        if masked and institutions < self.training.min_institutions:
            least = f"a sum over at least {self.training.min_institutions}"
            raise _refused("institutions", least, institutions)


def _each(values: tuple[str, ...], pattern: str, expected: str) -> tuple[str, ...]:
    for value in values:
        if not isinstance(value, str) or not re.match(pattern, value):
            raise ValueError(f"expected {expected}, got {value!r:.80}")
    return values


def _refused(name: str, expected: str, got: object) -> PolicyError:
    return PolicyError(
        f"{name}: this institution's policy allows {expected}, the run asks for {got!r:.40}",
        "agree on the run's settings with the coordinator, or change policy.toml",
    )


def _said(kind: type[BaseModel], error: ValidationError, text: str) -> str:
    """Where the first mistake is, what it is, and the names that are known there."""
    first = error.errors()[0]
    names = [str(part) for part in first["loc"] if isinstance(part, str)]
    known = kind
    for name in names[:-1]:
        fields = {field.alias: field.annotation for field in known.model_fields.values()}
        inner = fields[name]
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        known = inner
    line = _line(text, names)
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        return f"{line}: {'.'.join(names)}: {message}, got {first['input']!r:.80}"
    there = sorted(str(field.alias) for field in known.model_fields.values())
    near = difflib.get_close_matches(names[-1], there, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(there)}"
    return f"{line}: {'.'.join(names)} is not known: {hint}"


def _line(text: str, names: list[str]) -> str:
    """Where the key that ``names`` lead to stands, as the end of a path; empty if not found."""
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.strip()
        if bare.startswith("["):
            table = bare.strip("[] ")
        key = bare.split("=")[0].strip().strip("\"'")
        if table == ".".join(names) or (table == ".".join(names[:-1]) and key == names[-1]):
            return f", line {number}"
    return ""
