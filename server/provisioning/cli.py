"""The coordinator's commands for who is in the federation."""

from pathlib import Path
from typing import Annotated

import typer

from protocol.provisioning.spoken import FingerprintOption
from protocol.terminal import AsJson, Outcome, command

app = typer.Typer(help="Found a federation, and decide who is in it.", no_args_is_help=True)

HomeOption = Annotated[Path, typer.Option(help="The coordinator's folder.")]
PassphraseFileOption = Annotated[
    Path | None,
    typer.Option(help="File whose first line is the passphrase of the authority's key."),
]


@app.command()
@command
def init(
    home: HomeOption,
    name: Annotated[str, typer.Option(help="Name: small letters, digits and hyphens.")],
    host: Annotated[str, typer.Option(help="Public host or address of the coordinator.")],
    port: Annotated[int, typer.Option(help="Public port, nginx's.")] = 8443,
    listen: Annotated[str, typer.Option(help="Address that nginx listens on.")] = "0.0.0.0",  # noqa: S104
    superlink_port: Annotated[int, typer.Option(help="The superlink's port on loopback.")] = 18000,
    directory_port: Annotated[int, typer.Option(help="Port of directory and relay.")] = 8444,
    passphrase_file: PassphraseFileOption = None,
    as_json: AsJson = False,
) -> Outcome:
    """Make a federation: its authority, the coordinator's identity, settings, nginx.conf, unit.

    The authority's key gets a passphrase: from the file, from BLINDSIGHT_AUTHORITY_PASSPHRASE, or
    as it is typed. Where there is none of these and no terminal, it has none.
    """
    from protocol.provisioning.toml_settings import settings_of
    from server.provisioning.federation import Federation
    from server.provisioning.home import CoordinatorHome
    from server.provisioning.passphrase import Passphrase
    from server.provisioning.settings import FederationSettings

    settings = settings_of(
        FederationSettings,
        name=name,
        host=host,
        port=port,
        listen=listen,
        superlink_port=superlink_port,
        directory_port=directory_port,
    )
    federation = Federation.create(CoordinatorHome(home), settings, Passphrase(passphrase_file))
    fingerprint = federation.public.fingerprint
    return Outcome(
        f"federation {name} in {home}; its authority's fingerprint is\n{fingerprint}\n"
        "Tell it to every member by telephone or in person, and keep "
        f"{federation.home.authority_key} safe.",
        {"federation": name, "authority": fingerprint, "coordinator": settings.coordinator},
    )


@app.command()
@command
def approve(
    request: Annotated[Path, typer.Argument(help="The request.pem that came.")],
    home: HomeOption,
    role: Annotated[str, typer.Option(help="institution or searcher.")],
    fingerprint: FingerprintOption = None,
    host: Annotated[
        list[str] | None, typer.Option(help="A host of the request that is its own; repeatable.")
    ] = None,
    no_hosts: Annotated[bool, typer.Option("--no-hosts", help="Confirm no host.")] = False,
    renew: Annotated[bool, typer.Option("--renew", help="A new certificate, same key.")] = False,
    passphrase_file: PassphraseFileOption = None,
    as_json: AsJson = False,
) -> Outcome:
    """Let a party in: compare the fingerprint, certify its key, add it to the roster."""
    from protocol.errors import UsageError
    from protocol.provisioning.certificate_request import CertificateRequest
    from protocol.provisioning.fingerprint import check_fingerprint
    from server.provisioning.federation import Federation
    from server.provisioning.home import CoordinatorHome
    from server.provisioning.passphrase import Passphrase

    if role not in ("institution", "searcher"):
        raise UsageError(f"--role is institution or searcher, got {role!r:.40}")
    found = CertificateRequest.load(request)
    federation = Federation(CoordinatorHome(home), Passphrase(passphrase_file))
    check_fingerprint(fingerprint, found.identity, found.name)
    confirmed = [] if no_hosts else host
    done = federation.approve(
        found, "institution" if role == "institution" else "searcher", confirmed, renew
    )
    authority = federation.public.fingerprint
    return Outcome(
        f"{found.name} is {'renewed' if renew else 'in'}, roster {done.serial}\n"
        f"{done.kit}\nSend this file back, and the new roster.json to all others. "
        f"The authority's fingerprint, for its telephone call:\n{authority}",
        {
            "name": found.name,
            "role": role,
            "fingerprint": found.identity.fingerprint,
            "hosts": list(done.certificate.hosts),
            "expires": f"{done.certificate.not_after:%Y-%m-%d}",
            "serial": done.serial,
            "kit": str(done.kit),
            "authority": authority,
        },
    )


@app.command()
@command
def revoke(
    name: Annotated[str, typer.Argument(help="The member.")],
    home: HomeOption,
    passphrase_file: PassphraseFileOption = None,
    as_json: AsJson = False,
) -> Outcome:
    """Take a member out of the roster."""
    from server.provisioning.federation import Federation
    from server.provisioning.home import CoordinatorHome
    from server.provisioning.passphrase import Passphrase

    party = CoordinatorHome(home)
    member, roster = Federation(party, Passphrase(passphrase_file)).revoke(name)
    return Outcome(
        f"{name} is revoked, roster {roster.serial}\n{party.roster}\n"
        "Send this file to every member now: each refuses it from when it is installed.",
        {"name": name, "fingerprint": member.identity.fingerprint, "serial": roster.serial},
    )


@app.command()
@command
def roster(home: HomeOption, as_json: AsJson = False) -> Outcome:
    """Show the members, their fingerprints, and when their certificates expire."""
    from server.provisioning.federation import Federation
    from server.provisioning.home import CoordinatorHome

    federation = Federation(CoordinatorHome(home))
    found = federation.roster()
    rows = [
        {
            "name": member.name,
            "role": member.role,
            "fingerprint": member.identity.fingerprint,
            "expires": f"{certificate.not_after:%Y-%m-%d}",
            "hosts": list(certificate.hosts),
        }
        for member in found.members
        for certificate in [federation.certificate(member)]
    ]
    wide = max(len(member.name) for member in found.members)
    lines = [
        f"{row['name']:<{wide}}  {row['role']:<11}  {row['expires']}  {row['fingerprint']}"
        for row in rows
    ]
    authority = federation.public.fingerprint
    title = f"{found.federation}, roster {found.serial}, authority {authority}"
    data = {"federation": found.federation, "serial": found.serial, "authority": authority}
    return Outcome("\n".join([title, *lines]), data | {"members": rows})


@app.command()
@command
def renew(
    home: HomeOption, passphrase_file: PassphraseFileOption = None, as_json: AsJson = False
) -> Outcome:
    """Renew the coordinator's certificate and write nginx.conf, as federation.toml says."""
    from server.provisioning.federation import Federation, renew_coordinator, write_proxy
    from server.provisioning.home import CoordinatorHome
    from server.provisioning.passphrase import Passphrase

    federation = Federation(CoordinatorHome(home), Passphrase(passphrase_file))
    certificate = renew_coordinator(federation)
    write_proxy(federation.home, federation.settings)
    return Outcome(
        f"the coordinator's certificate is valid until {certificate.not_after:%Y-%m-%d} for "
        f"{', '.join(certificate.hosts)}; start the coordinator again",
        {"expires": f"{certificate.not_after:%Y-%m-%d}", "hosts": list(certificate.hosts)},
    )
