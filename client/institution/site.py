"""What an institution has settled for itself: its data, its state, its policy, its log."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from flwr.app import Context

from client.institution.aggregation import Aggregation
from client.institution.policy import Action, Policy
from client.institution.privacy.budget import budget_of
from client.institution.privacy.ledger import Budget
from client.institution.reading import Source, source_of
from protocol.audit import AuditLog
from protocol.errors import DataError, PolicyError, UsageError
from protocol.model.pretrained import EncoderChoice
from protocol.model.settings import TrainingSettings
from protocol.secure_aggregation.session import MAX_PARTICIPANTS, MIN_PARTICIPANTS


@dataclass(frozen=True, slots=True)
class Site:
    """The settings of one node (``node_config``), read anew for every message."""

    name: str
    source: Source
    encoders: EncoderChoice
    share_counts: bool
    share_epsilon: bool
    state: Path | None
    policy: Policy | None
    budget: Budget
    audit: AuditLog | None

    @classmethod
    def of(cls, context: Context) -> Self:
        """Read the node's settings and its policy. Raises DataError, UsageError.

        Without a policy nothing is allowed, and PolicyError is raised, unless the node's own
        settings say that it is a ``simulation``. The coordinator has no say in them.
        """
        config = context.node_config
        data, name = config.get("data"), config.get("name")
        if not isinstance(data, str) or not isinstance(name, str) or not name:
            raise DataError("the institution's settings need data and name")
        state = config.get("state", "")
        if not isinstance(state, str):
            raise DataError(
                f"the institution's setting state: expected a folder, got {state!r:.40}"
            )
        file = config.get("policy", "")
        if not isinstance(file, str):
            raise UsageError(f"the institution's setting policy: expected a file, got {file!r:.40}")
        policy = Policy.read(Path(file)) if file else None
        if policy is None and config.get("simulation") is not True:
            raise PolicyError(
                "this institution has no policy, and so allows nothing",
                "name its policy.toml in the node's settings: blindsight institution install "
                "writes one, and institution up names it",
            )
        # Anything but a plain true hides the counts: a misspelt setting must not reveal them.
        share_counts = config.get("share-counts", True) is True
        share_epsilon = share_counts
        if policy is not None:
            share_counts = policy.training.share_counts
            share_epsilon = policy.privacy.share_epsilon
        source, encoders = source_of(Path(data), config), EncoderChoice.from_config(config)
        folder, budget = Path(state) if state else None, budget_of(config, policy)
        audit = audit_of(config)
        return cls(
            name, source, encoders, share_counts, share_epsilon, folder, policy, budget, audit
        )

    def allow(self, settings: TrainingSettings, action: Action) -> None:
        """Raise PolicyError for a run, or a reply by itself, that the policy does not allow."""
        if self.policy is not None:
            self.policy.check_run(settings, action)
            self.policy.check_sum(settings.secure_aggregation, MAX_PARTICIPANTS)

    def aggregation(self, context: Context) -> Aggregation:
        """Secure aggregation, with what this institution has settled."""
        minimum = self.policy.training.min_institutions if self.policy else MIN_PARTICIPANTS
        return Aggregation.of(context, self.state, not self.share_counts, minimum)


def audit_of(config: Mapping[str, Any]) -> AuditLog | None:
    """The log that the setting ``audit`` names, if it names one."""
    path = config.get("audit", "")
    return AuditLog(Path(path)) if isinstance(path, str) and path else None
