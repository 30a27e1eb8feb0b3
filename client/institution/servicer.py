"""The gRPC face of an institution: parse, call one verb, answer. docs/protocol.md section 4."""

import io
import logging
from collections.abc import Iterator

import grpc

from client.institution.images import load_image
from client.institution.index import Index
from client.institution.items import Item
from client.institution.scorer import Scorer
from client.institution.settings import Releasable, ServiceSettings
from protocol import wire
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.blindsight.v1 import retrieval_pb2_grpc as rpc
from protocol.errors import DataError

log = logging.getLogger(__name__)

THUMBNAIL_PIXELS = 160


class RetrievalServicer(rpc.RetrievalServicer):
    """Serves one epoch of one index."""

    def __init__(self, settings: ServiceSettings, index: Index) -> None:
        self._settings = settings
        self._index = index
        self._scorer = Scorer(index.packed, settings.threads)
        self._described = wire.IndexDescription(
            settings.name, index.manifest.release_id, index.manifest.epoch, index.layout
        )

    def Describe(
        self, request: pb.DescribeRequest, context: grpc.ServicerContext
    ) -> pb.DescribeResponse:
        """Say what is served; nothing here depends on who asks."""
        return self._described.to_message()

    def Score(
        self, request: pb.ScoreRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ScoreResponse]:
        """Score an encrypted question; the work stops when the searcher goes away."""
        public_keys, chunks = wire.parse_score_request(request, self._described)
        for scores in self._scorer.score(public_keys, chunks, context.is_active):
            yield wire.score_response(self._index.layout, scores)

    def Fetch(self, request: pb.FetchRequest, context: grpc.ServicerContext) -> pb.FetchResponse:
        """Return what is released of the items asked for."""
        positions = wire.parse_fetch_request(request, self._described)
        return pb.FetchResponse(
            items=[
                pb.ReleasedItem(
                    position=position,
                    thumbnail=self._thumbnail(item),
                    caption=item.caption if self._may_leave(item, "caption") else "",
                )
                for position, item in zip(positions, self._index.items(positions), strict=True)
            ]
        )

    def close(self) -> None:
        """Stop scoring."""
        self._scorer.close()

    def _may_leave(self, item: Item, form: Releasable) -> bool:
        return form in self._settings.release and item.may_leave_as(form)

    def _thumbnail(self, item: Item) -> bytes:
        """Decode and encode anew, so that no metadata of the original leaves."""
        if not self._may_leave(item, "thumbnail"):
            return b""
        try:
            image = load_image(self._settings.data / item.file_name)
        except DataError as error:
            log.warning("an indexed image cannot be shown: %s", error.message)
            return b""
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=85)
        return encoded.getvalue()
