"""The gRPC face of an institution: parse, call one verb, answer. docs/protocol.md section 4."""

import io
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from client.institution.images import load_image
from client.institution.index import Index
from client.institution.scorer import Scorer
from client.institution.settings import ServiceSettings
from protocol import wire
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.blindsight.v1 import retrieval_pb2_grpc as rpc
from protocol.errors import DataError, MalformedMessage

log = logging.getLogger(__name__)

THUMBNAIL_PIXELS = 160

WORKERS = 8
"""Calls that are answered at once; four times as many are let in, and wait."""

QUESTION_SECONDS = 30.0
"""All that a question's messages may take to come: who sends nothing holds a worker no longer."""


class RetrievalServicer(rpc.RetrievalServicer):
    """Serves one epoch of one index."""

    def __init__(self, settings: ServiceSettings, index: Index) -> None:
        self._settings = settings
        self._index = index
        self._scorer = Scorer(index.packed, settings.threads)
        self._readers = ThreadPoolExecutor(WORKERS, "read")
        self._described = wire.IndexDescription(
            settings.name, index.manifest.release_id, index.manifest.epoch, index.layout
        )

    def Describe(
        self, request: pb.DescribeRequest, context: grpc.ServicerContext
    ) -> pb.DescribeResponse:
        """Say what is served; nothing here depends on who asks."""
        return self._described.to_message()

    def Score(
        self, request_iterator: Iterator[pb.ScoreRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ScoreResponse]:
        """Score an encrypted question; the work stops when the searcher goes away."""
        messages = self._in_time(request_iterator)
        public_keys, chunks = wire.parse_score_requests(messages, self._described)
        for scores in self._scorer.score(public_keys, chunks, context.is_active):
            yield wire.score_response(self._index.layout, scores)

    def Fetch(self, request: pb.FetchRequest, context: grpc.ServicerContext) -> pb.FetchResponse:
        """Return what is released of the items asked for."""
        positions = wire.parse_fetch_request(request, self._described)
        return pb.FetchResponse(
            items=[
                pb.ReleasedItem(
                    position=position,
                    thumbnail=self._thumbnail(item.file_name),
                    caption=item.caption if "caption" in self._settings.release else "",
                )
                for position, item in zip(positions, self._index.items(positions), strict=True)
            ]
        )

    def close(self) -> None:
        """Stop scoring."""
        self._scorer.close()
        self._readers.shutdown(cancel_futures=True)

    def _in_time(self, messages: Iterator[pb.ScoreRequest]) -> Iterator[pb.ScoreRequest]:
        """Yield messages as they come; refuse them once they take too long in all.

        gRPC waits for the next one as long as the call lives, so another thread does that: here
        the wait has an end, and the refusal ends the call and with it the other thread's.
        """
        end = time.monotonic() + QUESTION_SECONDS
        while True:
            coming = self._readers.submit(next, messages, None)
            try:
                message = coming.result(end - time.monotonic())
            except TimeoutError:
                raise MalformedMessage(
                    f"a question's messages come within {QUESTION_SECONDS:g} seconds",
                    "Ask over a faster connection.",
                ) from None
            except grpc.RpcError:
                return  # the searcher is gone
            if message is None:
                return
            yield message

    def _thumbnail(self, file_name: str) -> bytes:
        """Decode and encode anew, so that no metadata of the original leaves."""
        if "thumbnail" not in self._settings.release:
            return b""
        try:
            image = load_image(self._settings.data / file_name)
        except DataError as error:
            log.warning("an indexed image cannot be shown: %s", error.message)
            return b""
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=85)
        return encoded.getvalue()
