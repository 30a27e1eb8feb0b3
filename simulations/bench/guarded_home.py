"""An institution's folder, as a service behind a roster has it, and searchers of its federation."""

from pathlib import Path

from client.institution.provisioning.settings import InstitutionSettings
from protocol.files import write_atomically
from protocol.identity import Identity
from protocol.roster import Member, Role, Roster
from server.provisioning.authority import Authority
from simulations.bench.engine import NAME

_HOSTS = ("localhost", "127.0.0.1")
_POLICY = """
[search]
searchers = ["*"]
queries-a-day = 1000000000
min-items = 1
"""


class GuardedHome:
    """The folder ``root``, and in it one for each searcher: searcher-0, searcher-1 ..."""

    def __init__(self, root: Path, searchers: int) -> None:
        self.root = root
        key = Identity.ephemeral()
        authority, members = Authority.create(key, "load"), []
        roles: dict[str, Role] = {f"searcher-{i}": "searcher" for i in range(max(2, searchers))}
        for name, role in (roles | {NAME: "institution"}).items():
            identity = Identity.ephemeral()
            folder = root / ("identity" if name == NAME else name)
            certificate = authority.issue(identity.public, name, role, _HOSTS)
            write_atomically(folder / "private-key.pem", identity.private_pem())
            write_atomically(folder / "certificate.pem", certificate.pem)
            write_atomically(folder / "authority.pem", authority.certificate.pem)
            members.append(Member(name, role, identity.public))
        Roster("load", 1, tuple(members)).write(root / "roster.json", key)
        write_atomically(root / "policy.toml", _POLICY)
        (root / "data").mkdir()
        settings = InstitutionSettings(name=NAME, coordinator="localhost:8443")
        settings.save(root / "institution.toml")
