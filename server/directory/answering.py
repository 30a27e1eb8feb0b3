"""How a call that is refused is answered: as ``protocol.grpc_errors`` does, for ``grpc.aio``."""

import logging
from typing import Any, NoReturn

import grpc

from protocol.grpc_errors import CODE_KEY, refusal

log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


class Refused(Exception):
    """Not now: ``status`` is gRPC's, ``message`` says what was expected and got."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


async def abort(error: Exception, context: Context) -> NoReturn:
    """End the call with what ``error`` stands for. What is no breach of the protocol stays here."""
    if (told := refusal(error)) is not None:
        log.info("refused: %s", dict(told[2])[CODE_KEY])
        await context.abort(*told)
    if isinstance(error, Refused):
        log.info("refused: %s", error.status.name)
        await context.abort(error.status, error.message)
    log.error("a call failed", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "the coordinator cannot answer now")
