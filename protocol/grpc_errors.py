"""The one place where errors become gRPC statuses, and statuses errors again."""

from __future__ import annotations  # grpc's types are generic in its stubs only

import logging
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from protocol.errors import BlindsightError, ProtocolError, ServiceError

log = logging.getLogger(__name__)

_CODE_KEY = "blindsight-code"


class ErrorInterceptor(grpc.ServerInterceptor):
    """Answers a breach of the protocol with its status, its message and its code.

    Every other error stays inside: its message may name private files. It is logged here, and
    the caller is told only that there is no answer.
    """

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of one call."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if handler.response_streaming:
            stream = handler.unary_stream
            return grpc.unary_stream_rpc_method_handler(
                lambda request, context: _streamed(method, stream, request, context),
                handler.request_deserializer,
                handler.response_serializer,
            )
        unary = handler.unary_unary
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: _answered(method, unary, request, context),
            handler.request_deserializer,
            handler.response_serializer,
        )


def _streamed(
    method: str, behaviour: Any, request: Any, context: grpc.ServicerContext
) -> Iterator[Any]:
    try:
        yield from behaviour(request, context)
    except Exception as error:
        _abort(method, error, context)


def _answered(method: str, behaviour: Any, request: Any, context: grpc.ServicerContext) -> Any:
    try:
        return behaviour(request, context)
    except Exception as error:
        _abort(method, error, context)


def _abort(method: str, error: Exception, context: grpc.ServicerContext) -> None:
    if isinstance(error, ProtocolError):
        log.info("%s refused: %s", method, error.code)
        context.set_trailing_metadata(((_CODE_KEY, error.code),))
        context.abort(getattr(grpc.StatusCode, error.status), error.message)
    log.error("%s failed", method, exc_info=error)
    context.abort(grpc.StatusCode.INTERNAL, "the institution cannot answer now")


def error_from_rpc(error: grpc.RpcError, who: str) -> BlindsightError:
    """Return the error that a failed call to ``who`` stands for."""
    status = error.code()
    details = str(error.details() or "")[:500]
    codes = [str(one.value) for one in error.trailing_metadata() or () if one.key == _CODE_KEY]
    kinds: list[type[BlindsightError]] = [*ProtocolError.__subclasses__()]
    for kind in kinds:
        if kind.code in codes:
            return kind(f"{who}: {details}")
    if status == grpc.StatusCode.UNAVAILABLE:
        return ServiceError(f"{who} cannot be reached: {details}", "Is its service running?")
    if status == grpc.StatusCode.DEADLINE_EXCEEDED:
        return ServiceError(f"{who} did not answer in time", "Try again, or allow more time.")
    return ServiceError(f"{who} did not answer: {status.name}: {details}")
