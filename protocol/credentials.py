"""Who talks to whom: mutual TLS from three PEM files, the same form on both sides."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from protocol.errors import UsageError


@dataclass(frozen=True)
class Credentials:
    """A party's certificate and private key, and the federation's certificate authority."""

    certificate: Path
    private_key: Path
    authority: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "Credentials":
        """Return the credentials kept in ``folder`` under their usual names."""
        return cls(folder / "certificate.pem", folder / "private-key.pem", folder / "authority.pem")

    def for_server(self) -> grpc.ServerCredentials:
        """Return credentials that ask every client for a certificate of this federation."""
        certificate, private_key, authority = self._read()
        return grpc.ssl_server_credentials([(private_key, certificate)], authority, True)

    def for_client(self, only: bytes | None = None) -> grpc.ChannelCredentials:
        """Return credentials that show this party's certificate and check the server's.

        ``only``: the one certificate (PEM) that the server may have, checked before; else any
        of the authority's.
        """
        certificate, private_key, authority = self._read()
        return grpc.ssl_channel_credentials(only or authority, private_key, certificate)

    def _read(self) -> tuple[bytes, bytes, bytes]:
        try:
            return (
                self.certificate.read_bytes(),
                self.private_key.read_bytes(),
                self.authority.read_bytes(),
            )
        except OSError as error:
            raise UsageError(
                f"credentials cannot be read: {error.filename}: {error.strerror}",
                "Name the folder that holds certificate.pem, private-key.pem and authority.pem.",
            ) from error
