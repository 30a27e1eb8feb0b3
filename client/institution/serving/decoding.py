"""Bytes become messages inside a call, not before it: what is no message is refused as any other.

gRPC for Python keeps the stream of a call whose message it could not read: after 40 of them
nothing more is answered on that connection.
"""

from __future__ import annotations  # grpc's types are generic in its stubs only

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from protocol.errors import MalformedMessage


class DecodingInterceptor(grpc.ServerInterceptor):
    """Reads the messages of this project's own calls; goes inside of ``ErrorInterceptor``."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of one call; it raises MalformedMessage."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith("/grpc."):
            return handler
        decode, encode = handler.request_deserializer, handler.response_serializer
        if handler.request_streaming:
            stream: Any = handler.stream_stream
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: stream(_read_all(decode, requests), context),
                response_serializer=encode,
            )
        if handler.response_streaming:
            answers: Any = handler.unary_stream
            return grpc.unary_stream_rpc_method_handler(
                lambda request, context: answers(_read(decode, request), context),
                response_serializer=encode,
            )
        answer: Any = handler.unary_unary
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: answer(_read(decode, request), context),
            response_serializer=encode,
        )


def _read(decode: Any, data: bytes) -> Any:
    try:
        return decode(data)
    except DecodeError as error:
        raise MalformedMessage(f"{len(data):,} bytes are not a message of this call") from error


def _read_all(decode: Any, requests: Iterator[bytes]) -> Iterator[Any]:
    try:
        for data in requests:
            yield _read(decode, data)
    except grpc.RpcError as error:
        raise MalformedMessage("the stream of messages was cut off") from error
