"""What leaves of an item, in the forms that policy and item both allow, and nothing beside them."""

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from client.institution.formats.checks import checked_name, inside
from client.institution.formats.stored import read_stored
from client.institution.images import load_image
from client.institution.items import Item
from client.institution.search_policy import Form
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.errors import DataError

log = logging.getLogger(__name__)

THUMBNAIL_PIXELS = 160
MAX_MESSAGE_BYTES = 4 << 20
"""Of items in one message; larger originals do not leave."""
_ITEM_MARGIN = 16 << 10


class Releasing:
    """Reads items in the institution's data folder, and nowhere else."""

    def __init__(self, data: Path) -> None:
        self._root = os.path.realpath(data)

    def messages(
        self, items: list[tuple[int, Item]], forms: frozenset[Form]
    ) -> Iterator[pb.FetchResponse]:
        """Yield (position, item) in order, as many a message as fit; one that fails is empty."""
        message, size = pb.FetchResponse(), 0
        for position, item in items:
            released = self._released(position, item, forms)
            bytes_here = released.ByteSize() + 8
            if size and size + bytes_here > MAX_MESSAGE_BYTES:
                yield message
                message, size = pb.FetchResponse(), 0
            message.items.append(released)
            size += bytes_here
        yield message

    def _released(self, position: int, item: Item, forms: frozenset[Form]) -> pb.ReleasedItem:
        released = pb.ReleasedItem(position=position)
        forms = frozenset(form for form in forms if item.may_leave_as(form))
        if "id" in forms:
            released.id = item.file_name
        if "caption" in forms:
            released.caption = item.caption
        try:
            if forms & {"thumbnail", "original"}:
                path = inside(self._root, checked_name(item.file_name, "index"), "index")
                if "thumbnail" in forms:
                    released.thumbnail = _thumbnail(path)
                if "original" in forms:
                    original = read_stored(path)
                    if len(original) <= MAX_MESSAGE_BYTES - _ITEM_MARGIN - len(released.thumbnail):
                        released.original = original
        except (DataError, OSError) as error:
            # To whoever asks, an item that cannot be read is one without a picture.
            log.warning("an indexed image cannot be shown: %s", error)
        return released


def _thumbnail(path: Path) -> bytes:
    """Decode and encode anew, so that no metadata of the original leaves."""
    image = load_image(path)
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    image.info.clear()  # Pillow would write a JPEG's comment again
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()
