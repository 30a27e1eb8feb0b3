"""Updates in fewer bytes: one codec a file, chosen by ``TrainingSettings.compression``."""

from protocol.errors import UsageError
from protocol.model.compression.codec import Codec
from protocol.model.compression.float16 import Float16
from protocol.model.compression.int8 import Int8
from protocol.model.compression.plain import Plain
from protocol.model.compression.top_k import TopK

__all__ = ["Codec", "codec_of"]

_TOP_K = "top-k:"


def codec_of(compression: str) -> Codec:
    """The codec of a setting: ``none``, ``float16``, ``int8`` or ``top-k:SHARE``.

    Raises UsageError for another; TrainingSettings has refused those before.
    """
    if compression == "none":
        return Plain()
    if compression == "float16":
        return Float16()
    if compression == "int8":
        return Int8()
    if compression.startswith(_TOP_K):
        try:
            return TopK(float(compression.removeprefix(_TOP_K)))
        except ValueError as error:
            raise UsageError(f"compression {compression!r:.40}: {error}") from error
    raise UsageError(
        f"compression: expected none, float16, int8 or top-k:SHARE, got {compression!r:.40}"
    )
