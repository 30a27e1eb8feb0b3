"""What an institution settles about privacy, and what it does before a round.

In its own settings (``node_config``): ``privacy-budget-epsilon`` (0, the default: no limit) and
``privacy-delta`` (1e-6). Its policy says the same, and the stricter of both holds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.institution.policy import Policy
from client.institution.privacy.ledger import Budget, Charge, Ledger
from protocol.accountant import Spending, epsilon
from protocol.errors import BudgetError, UsageError
from protocol.model.settings import TrainingSettings


def budget_of(config: Mapping[str, Any], policy: Policy | None) -> Budget:
    """The budget that settings and policy make. Raises UsageError for a value out of range."""
    limit = _number(config, "privacy-budget-epsilon", 0.0, 0.0, 1e6)
    delta = _number(config, "privacy-delta", 1e-6, 1e-15, 0.1)
    if policy is None:
        return Budget(limit, delta)
    limits = [one for one in (limit, policy.privacy.max_epsilon) if one]
    return Budget(min(limits, default=0.0), min(delta, policy.privacy.delta))


def pay(
    budget: Budget,
    state: Path | None,
    settings: TrainingSettings,
    run: str,
    number: int,
    spending: Spending | None,
) -> float | None:
    """Pay for a round before it trains; returns what all rounds cost, as epsilon.

    ``spending`` is None for a round without noise. That one is free where there is no budget; where
    there is one it is refused, for its price is infinite. Without a state folder, as in a
    simulation, nothing is kept, and the rounds of this run alone are counted.
    Raises BudgetError, UsageError for a budget without a state folder, and StorageError.
    """
    if spending is None:
        if budget.epsilon:
            raise BudgetError(
                f"the run trains without noise; expected a cost of at most {budget.epsilon:g}",
                "Train with privacy-noise, or lift the institution's budget.",
            )
        return None
    if state is not None:
        return Ledger(state).charge(Charge(run, number, spending), budget)
    if budget.epsilon:
        raise UsageError(
            "a privacy budget needs the institution's setting state: a folder for its ledger",
            "set state, and keep the folder",
        )
    return epsilon([spending] * number, budget.delta)


def _number(
    config: Mapping[str, Any], key: str, default: float, least: float, most: float
) -> float:
    value = config.get(key, default)
    if type(value) not in (int, float) or not least <= value <= most:
        raise UsageError(
            f"the institution's setting {key}: expected a number from {least:g} to {most:g}, "
            f"got {value!r:.40}"
        )
    return float(value)
