"""The one place where errors become gRPC statuses, and statuses errors again."""

from __future__ import annotations  # grpc's types are generic in its stubs only

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from protocol.errors import (
    BlindsightError,
    LimitReached,
    PolicyError,
    ProtocolError,
    ServiceError,
)

log = logging.getLogger(__name__)

CODE_KEY = "blindsight-code"
_RETRY_KEY = "retry-after-ms"
_MAX_RETRY_MS = 86_400_000
_TOLD = (ProtocolError, PolicyError, LimitReached)
"""What a caller is told. Their messages never name a private file."""


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
        if method.startswith("/grpc."):
            return handler  # health and reflection answer for themselves
        if handler.response_streaming:
            stream = handler.stream_stream if handler.request_streaming else handler.unary_stream
            wrap = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return wrap(
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


def refusal(error: Exception) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]] | None:
    """Status, message and trailing metadata of what a caller is told; None of all else."""
    if not isinstance(error, _TOLD):
        return None
    trailing = [(CODE_KEY, error.code)]
    if isinstance(error, LimitReached) and error.retry_after_ms is not None:
        trailing.append((_RETRY_KEY, str(error.retry_after_ms)))
    return getattr(grpc.StatusCode, error.status), error.message, tuple(trailing)


def _abort(method: str, error: Exception, context: grpc.ServicerContext) -> None:
    if (told := refusal(error)) is not None:
        status, message, trailing = told
        log.info("%s refused: %s", method, dict(trailing)[CODE_KEY])
        context.set_trailing_metadata(trailing)
        context.abort(status, message)
    log.error("%s failed", method, exc_info=error)
    context.abort(grpc.StatusCode.INTERNAL, "the institution cannot answer now")


def error_from_rpc(error: grpc.RpcError, who: str) -> BlindsightError:
    """Return the error that a failed call to ``who`` stands for."""
    status = error.code()
    details = str(error.details() or "")[:500]
    codes = [str(one.value) for one in error.trailing_metadata() or () if one.key == CODE_KEY]
    if LimitReached.code in codes:
        return _limit_reached(error, who, details)
    kinds: list[type[BlindsightError]] = [PolicyError, *ProtocolError.__subclasses__()]
    for kind in kinds:
        if kind.code in codes:
            return kind(f"{who}: {details}")
    if status == grpc.StatusCode.UNAVAILABLE:
        return ServiceError(f"{who} cannot be reached: {details}", "Is its service running?")
    if status == grpc.StatusCode.DEADLINE_EXCEEDED:
        return ServiceError(f"{who} did not answer in time", "Try again, or allow more time.")
    return ServiceError(f"{who} did not answer: {status.name}: {details}")


def _limit_reached(error: grpc.RpcError, who: str, details: str) -> LimitReached:
    """With when to ask again, if the other side said so in at most a day's milliseconds."""
    said = [str(one.value) for one in error.trailing_metadata() or () if one.key == _RETRY_KEY]
    found = re.fullmatch(r"[0-9]{1,8}", said[0]) if said else None
    wait = int(found[0]) if found else _MAX_RETRY_MS + 1
    known = wait <= _MAX_RETRY_MS
    hint = f"Ask again in {max(1, round(wait / 1000)):,} seconds." if known else "Ask again later."
    reached = LimitReached(f"{who}: {details}", hint)
    reached.retry_after_ms = wait if known else None
    return reached
