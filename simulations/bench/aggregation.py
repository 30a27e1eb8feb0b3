"""What a round of secure aggregation costs: masking, unmasking, bytes and rounding.

Institutions and coordinator are the real ones, one after the other on one thread, without a network
and without training between them.
"""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from client.institution.masking import Masking
from client.institution.unmasked import Unmasked
from protocol.errors import UsageError
from protocol.identity import Identity
from protocol.model.settings import TrainingSettings
from protocol.roster import Member, Roster
from protocol.secure_aggregation.contribution import Contribution, update_step
from protocol.secure_aggregation.session import Session
from protocol.terminal import Outcome, progress
from server.unmasking import Unmasking

_CHANGE = 0.01


def bench_aggregation(parameters: int, institutions: int, drop: int, seed: int = 0) -> Outcome:
    """One session of ``institutions``, of which ``drop`` never send their vector."""
    defaults = TrainingSettings()
    clip, weight = defaults.clipping_range, defaults.max_weight
    threshold = defaults.reconstruction_threshold
    session = Session("bench", "0" * 32, "train", 1, threshold, clip, weight)
    if institutions - drop < session.least(institutions):
        raise UsageError(
            f"{institutions - drop} of {institutions} institutions cannot unmask a sum: it takes "
            f"{session.least(institutions)}",
            "let fewer drop out, or name more institutions",
        )
    found: dict[str, Any] = {
        "parameters": parameters,
        "institutions": institutions,
        "dropped": drop,
        "threshold": session.least(institutions),
    }
    with progress("aggregating", institutions) as show:
        found |= _run(session, parameters, institutions, drop, seed, show)
    return Outcome(_text(found), found)


def _run(
    session: Session, parameters: int, institutions: int, drop: int, seed: int, show: Any
) -> dict[str, float]:
    parties = {f"institution-{n}": Identity.ephemeral() for n in range(1, institutions + 1)}
    members = tuple(Member(name, "institution", one.public) for name, one in parties.items())
    roster = Roster(session.federation, 1, members)
    coordinator = Unmasking(session, roster)
    states: dict[str, dict[str, Any]] = {name: {} for name in parties}
    party = {
        name: Masking(one, roster, states[name], Unmasked(states[name], None))
        for name, one in parties.items()
    }
    seconds = dict.fromkeys(party, 0.0)
    sent = dict.fromkeys(party, 0)
    received = dict.fromkeys(party, 0)
    updates = _updates(parameters, institutions, seed)

    def ask(name: str, work: Any, *said: Any) -> Any:
        started = time.perf_counter()
        answer = work(session, *said)
        seconds[name] += time.perf_counter() - started
        received[name] += sum(len(one) for one in said if isinstance(one, bytes))
        sent[name] += len(answer) if isinstance(answer, bytes) else 0
        return answer

    for name, one in party.items():
        coordinator.take_keys(ask(name, one.advertise, False))
    roll = coordinator.roll.to_bytes()
    for name, one in party.items():
        coordinator.take_parcels(name, ask(name, one.share, roll))
    exact = np.zeros(parameters)
    masking, collecting = [], 0.0
    for done, (name, one) in enumerate(party.items(), start=1):
        given = Contribution(next(updates), np.array([1.0]), session.max_weight)
        ask(name, one.receive, coordinator.parcels_for(name))
        before = seconds[name]
        words, _ = ask(name, one.mask, given)
        masking.append(seconds[name] - before)
        sent[name] += words.update.nbytes + words.totals.nbytes
        if done <= institutions - drop:
            started = time.perf_counter()
            coordinator.take_masked(name, words)
            collecting += time.perf_counter() - started
            exact += given.update
        show(done)
    if drop:
        survivors, _ = coordinator.closing()
        for name in coordinator.survivors:
            coordinator.take_signature(name, ask(name, party[name].agree, survivors))
    survivors, agreement = coordinator.closing()
    for name in coordinator.survivors:
        coordinator.take_revealed(name, ask(name, party[name].unmask, survivors, agreement))
    started = time.perf_counter()
    summed = coordinator.unmask()
    unmasking = time.perf_counter() - started
    step = update_step(session, institutions)
    stayed = coordinator.survivors
    return {
        "masking_s": median(masking),
        "institution_s": median(seconds[name] for name in stayed),
        "unmasking_s": unmasking,
        "adding_s": collecting,
        "bytes_up": median(sent[name] for name in stayed),
        "bytes_down": median(received[name] for name in stayed),
        "bytes_over_plain": median(sent[n] + received[n] for n in stayed) / (4 * parameters),
        "step": step,
        "max_error_steps": float(np.abs(summed.update - exact).max()) / step,
        "bound_steps": len(stayed) / 2,
    }


def _updates(parameters: int, count: int, seed: int) -> Iterator[Any]:
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield generator.standard_normal(parameters, np.float32) * np.float32(_CHANGE)


def _text(found: dict[str, Any]) -> str:
    table = Table("secure aggregation", "", title_justify="left")
    rows = {
        "masking, an institution": f"{found['masking_s']:.3f} s",
        "all of a round, an institution": f"{found['institution_s']:.3f} s",
        "unmasking, the coordinator": f"{found['unmasking_s']:.3f} s",
        "sent by an institution": f"{found['bytes_up']:,.0f} B",
        "beside it received": f"{found['bytes_down']:,.0f} B",
        "bytes over a plain sum's": f"{found['bytes_over_plain']:.4f}",
        "largest error": f"{found['max_error_steps']:.2f} steps of {found['step']:.1e}, "
        f"at most {found['bound_steps']:g}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console = Console(width=100, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(
            f"{found['parameters']:,} parameters, {found['institutions']} institutions, "
            f"{found['dropped']} dropped out, {found['threshold']} unmask"
        )
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
