"""What a searcher checks before it searches: its folder, and whether anybody answers it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from protocol.errors import BlindsightError, ServiceError
from protocol.provisioning.home import Home
from protocol.provisioning.preflight import Check, check_identity
from protocol.terminal import Outcome, progress
from protocol.wire import IndexDescription

if TYPE_CHECKING:
    from client.searcher.profile import Profile
    from client.searcher.remote import RemoteInstitution
    from protocol.model.release import Release
    from protocol.scheme import Scheme


def examine_searcher(root: Path) -> list[Check]:
    """Every check of a searcher's folder; whom it reaches, ``blindsight searcher setup`` shows."""
    return check_identity(Home(root))


@dataclass
class Rehearsal:
    """What became of asking everybody what they serve, and one of them a question.

    ``asked`` is who answered the question; ``notes`` say why others did not answer, by name.
    """

    described: dict[str, IndexDescription] = field(default_factory=dict)
    asked: str | None = None
    questions_left: int | None = None
    notes: dict[str, BlindsightError] = field(default_factory=dict)


def make_ready(profile: "Profile") -> Outcome:
    """Fetch the newest release, load it, and ask the institutions: all that a search needs.

    Raises the first BlindsightError that ends it, ServiceError if nobody answers a question.
    """
    from client.searcher.ckks import SealScheme
    from protocol.model.embedder import Embedder

    release = profile.fetch_release()
    with progress("loading the text tower", None):
        Embedder(release).texts(["a picture"])
    connections, notes = profile.connections()
    try:
        with progress("asking the institutions", None):
            found = rehearse(connections, release.release_id, SealScheme())
    finally:
        for one in connections:
            one.close()
    found.notes |= notes
    return _told(release, found)


def rehearse(
    institutions: Sequence["RemoteInstitution"], release_id: str, scheme: "Scheme"
) -> Rehearsal:
    """Ask each what it serves, then the first that answers an encrypted question of chance.

    That question is charged to the searcher's day there, as any is; should one refuse it, the next
    is asked. Raises nothing: what goes wrong is in the notes.
    """
    from client.searcher.fan_out import describe
    from client.searcher.traffic import Traffic

    everybody, notes = describe(institutions, release_id)
    found = Rehearsal(everybody, notes=notes)
    for one in institutions:
        if (described := found.described.get(one.name)) is None:
            continue
        question = np.random.default_rng().standard_normal(described.layout.dim)
        question /= np.linalg.norm(question)
        traffic = Traffic()
        try:
            one.score(described, question.astype(np.float32), scheme, traffic)
        except BlindsightError as error:
            found.notes[one.name] = error
            continue
        found.asked, found.questions_left = one.name, traffic.questions_left
        break
    return found


def _told(release: "Release", found: Rehearsal) -> Outcome:
    ready = {name: one for name, one in found.described.items() if name not in found.notes}
    lines = [f"release {release.release_id}, signed by the coordinator, is in {release.path}"]
    for name, described in ready.items():
        said = ", and answered an encrypted question" if name == found.asked else ""
        lines.append(f"{name} serves {described.layout.items:,} items{said}")
    lines += [f"not {name}: {note.message}" for name, note in found.notes.items()]
    if found.notes and found.asked is None:
        hints = [note.hint for note in found.notes.values() if note.hint]
        hints.append("Ask them: is their service up, and does their policy name you?")
        raise ServiceError("\n".join(["nobody answered a question", *lines]), hints[0])
    if found.notes:
        lines.append(
            f"{len(ready)} of {len(ready) + len(found.notes)} institutions can be searched"
        )
    elif ready:
        lines.append('all is well: blindsight search "…" asks every institution')
    else:
        lines.append("the directory lists no institution yet; otherwise all is well")
    data = {
        "release_id": release.release_id,
        "institutions": sorted(ready),
        "answered": found.asked,
        "questions_left": found.questions_left,
        "refused": {name: note.message for name, note in found.notes.items()},
    }
    return Outcome("\n".join(lines), data)
