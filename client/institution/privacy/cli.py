"""blindsight institution privacy: what has been spent."""

from pathlib import Path
from typing import Annotated

import typer

from protocol.terminal import AsJson, Outcome, command


@command
def privacy(
    state: Annotated[Path, typer.Option(help="The institution's state folder.")],
    budget: Annotated[float, typer.Option(min=0, help="Its budget as epsilon; 0: none.")] = 0.0,
    delta: Annotated[float, typer.Option(help="The delta that epsilon is at.")] = 1e-6,
    as_json: AsJson = False,
) -> Outcome:
    """Show what training has spent of the records' privacy, and what is left."""
    from client.institution.privacy.ledger import Ledger
    from protocol.accountant import epsilon

    charges = Ledger(state).read()
    spent = epsilon([one.spending for one in charges], delta)
    runs = len({one.run for one in charges})
    left = max(0.0, budget - spent) if budget else None
    text = f"epsilon {spent:.3f} at delta {delta:g} spent in {len(charges)} rounds of {runs} runs"
    return Outcome(
        text if left is None else f"{text}; {left:.3f} of {budget:g} left",
        {"epsilon": spent, "delta": delta, "left": left, "rounds": len(charges), "runs": runs},
    )
