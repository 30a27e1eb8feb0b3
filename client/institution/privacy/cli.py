"""blindsight institution privacy, privacy-plan: what has been spent, and what a run would cost."""

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


@command
def privacy_plan(
    units: Annotated[
        int, typer.Option(min=1, help="Groups, and items without one, in the training split.")
    ],
    epsilon: Annotated[float, typer.Option(min=0.001, help="What the run may cost.")],
    rounds: Annotated[int, typer.Option(min=1, help="Its rounds.")],
    local_epochs: Annotated[int, typer.Option(min=1, help="Epochs in each.")] = 4,
    batch_size: Annotated[int, typer.Option(min=2, help="Units that a step expects.")] = 16,
    delta: Annotated[float, typer.Option(help="The delta that epsilon is at.")] = 1e-6,
    as_json: AsJson = False,
) -> Outcome:
    """Say how much noise a run needs to cost no more than so much, where nothing is spent yet."""
    from client.institution.privacy.mechanism import Plan
    from protocol.accountant import Spending, noise_for
    from protocol.accountant import epsilon as cost
    from protocol.model.settings import TrainingSettings

    settings = TrainingSettings(
        rounds=rounds, local_epochs=local_epochs, batch_size=batch_size, privacy_noise=1.0
    )
    # How often a unit is drawn does not depend on the noise.
    drawn = Plan.of(settings, units).spending(settings.epochs)
    noise = noise_for(epsilon, delta, drawn.sampling, drawn.steps)
    found = cost([Spending(noise, drawn.sampling, drawn.steps)], delta)
    text = (
        f"--privacy-noise {noise:.3f} costs epsilon {found:.3f} at delta {delta:g}: "
        f"{drawn.steps} steps, each with a share of {drawn.sampling:.3g} of {units:,} units"
    )
    data = {"noise": noise, "epsilon": found, "delta": delta, "steps": drawn.steps,
            "sampling": drawn.sampling}  # fmt: skip
    return Outcome(text, data)
