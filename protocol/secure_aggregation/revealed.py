"""The shares that an institution reveals: of each participant the one secret or the other."""

from collections.abc import Mapping

from protocol.errors import MalformedMessage
from protocol.secure_aggregation.fields import expect_size, join_fields, split_fields
from protocol.secure_aggregation.session import MAX_PARTICIPANTS
from protocol.secure_aggregation.shamir import SHARE_BYTES


def join_revealed(shares: Mapping[str, bytes]) -> bytes:
    """A share of the seed for each survivor, of the mask key for each who dropped out, by name."""
    return join_fields(part for name in sorted(shares) for part in (name.encode(), shares[name]))


def read_revealed(content: object, names: tuple[str, ...]) -> dict[str, bytes]:
    """Foreign bytes: exactly one share for each of ``names``. Raises MalformedMessage."""
    fields = split_fields(content, "revealed shares", range(2 * MAX_PARTICIPANTS + 1), 63)
    said = [field.decode("ascii", "replace") for field in fields[::2]]
    if said != sorted(names) or len(fields) != 2 * len(names):
        raise MalformedMessage(
            f"revealed shares: expected one for each of {len(names)} participants"
        )
    return {
        name: expect_size(share, SHARE_BYTES, "revealed share")
        for name, share in zip(said, fields[1::2], strict=True)
    }
