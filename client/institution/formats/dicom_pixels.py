"""The pixels of a DICOM file as a person would see them.

Nothing else of the file goes into the image. A compressed frame is measured before it is decoded,
which pydicom's own decoders do not.
"""

import io
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_windowing
from pydicom.pixels.utils import pixel_array
from pydicom.uid import RLELossless

from client.institution.formats.dicom_header import HINT, measured, read_header
from protocol.errors import DataError

#: pydicom unpacks a run of two bytes to 128 without asking how many are needed.
RLE_BYTES = 8 << 20
#: An item of eight bytes costs a hundred times as much to look at.
FRAGMENTS = 100_000
_ITEM = b"\xfe\xff\x00\xe0"
#: So many different values are shown through a table, which spares eight bytes a pixel.
_TABLE = 1 << 17
_PIXELS = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF


def decode(data: bytes) -> Image.Image:
    """The image as L or RGB: rescaled, windowed, MONOCHROME1 inverted.

    Of several frames the middle one. Without window or table the values are spread from the
    least to the greatest. Raises DataError for what cannot be decoded.
    """
    try:
        bounded = io.BytesIO(data)
        header = read_header(bounded)
        columns, rows = measured(header)
        middle = int(header.get("NumberOfFrames") or 1) // 2
        _flatten(header, middle)
        values = _values(header, data, bounded.tell(), middle)
        if values.shape[:2] != (rows, columns):
            raise DataError(f"expected {rows} x {columns} pixels, got {values.shape}", HINT)
        with np.errstate(all="ignore"):  # foreign factors: what they give is checked
            shown = _grey(values, header) if values.ndim == 2 else _eight_bits(values)
        return Image.fromarray(shown)
    except DataError:
        raise
    except Exception as error:  # a decoder that is fed foreign bytes may raise nearly anything
        raise DataError(f"{type(error).__name__}: {error}", HINT) from error


def _flatten(header: Dataset, frame: int) -> None:
    """Lift what an enhanced multi-frame says of one frame to where others have it (C.7.6.16)."""
    shared = list(header.get("SharedFunctionalGroupsSequence") or ())[:1]
    own = list(header.get("PerFrameFunctionalGroupsSequence") or ())[frame : frame + 1]
    for groups in shared + own:
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in list(groups.get(macro) or ())[:1]:
                header.update(item)


def _values(header: Dataset, data: bytes, start: int, frame: int) -> npt.NDArray[Any]:
    """The stored values of one frame, [rows, columns] or [rows, columns, 3]."""
    implicit, little = header.original_encoding
    order: Literal["little", "big"] = "little" if little else "big"
    group, element = (int.from_bytes(data[start + i : start + i + 2], order) for i in (0, 2))
    if (group << 16) | element != _PIXELS:
        raise DataError("no pixels, or such as are stored as fractions", "leave it out")
    kind = "OW" if implicit else data[start + 4 : start + 6].decode("latin-1")
    if kind not in ("OB", "OW"):
        raise DataError(f"pixels: expected OB or OW, got {kind!r}", HINT)
    start += 8 if implicit else 12
    length = int.from_bytes(data[start - 4 : start], order)
    value = data[start:] if length == _UNDEFINED else data[start : start + length]
    syntax = header.file_meta.TransferSyntaxUID
    if not get_decoder(syntax).is_available:
        raise DataError(f"its transfer syntax, {syntax.name}, cannot be decoded here", HINT)
    if syntax.is_encapsulated:
        if value.count(_ITEM) > FRAGMENTS:
            raise DataError(f"expected at most {FRAGMENTS:,} fragments", HINT)
        frames = int(header.get("NumberOfFrames") or 1)
        value = _one_frame(get_frame(value, frame, number_of_frames=frames), header)
        header.NumberOfFrames, frame = 1, 0
    header.add_new(_PIXELS, kind, value)
    header[_PIXELS].is_undefined_length = length == _UNDEFINED
    return pixel_array(header, index=frame)


def _one_frame(frame: bytes, header: Dataset) -> bytes:
    """One compressed frame by itself, once it is known to be as large as the header says."""
    if header.file_meta.TransferSyntaxUID == RLELossless:
        if len(frame) > RLE_BYTES:
            raise DataError(
                f"expected at most {RLE_BYTES:,} bytes of RLE, got {len(frame):,}", HINT
            )
    elif frame[:2] == b"\xff\xd8" or frame[:4] in (b"\xff\x4f\xff\x51", b"\0\0\0\x0c"):
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            if image.size != (columns_rows := measured(header)):
                raise DataError(f"expected {columns_rows} pixels, the JPEG has {image.size}", HINT)
    return encapsulate([frame], has_bot=False)


def _grey(values: npt.NDArray[Any], header: Dataset) -> npt.NDArray[np.uint8]:
    """Stored values [rows, columns] as greys of the same shape, or through a palette as RGB."""
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return _palette(values, header)
    low, high = int(values.min()), int(values.max())
    if high - low >= _TABLE:
        return _light(values, header)
    table = _light(np.arange(low, high + 1, dtype=np.int32), header)
    shown = np.empty(values.shape, np.uint8)
    for line, row in zip(shown, values, strict=True):
        line[:] = table[row.astype(np.int64) - low]
    return shown


def _light(values: npt.NDArray[Any], header: Dataset) -> npt.NDArray[np.uint8]:
    """PS3.3 C.11.1 (modality), C.11.2 (values of interest), C.7.6.3.1.2 (which end is white)."""
    values = apply_modality_lut(values, header).astype(np.float64)
    low, high = values.min(), values.max()
    if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        far = np.finfo(np.float32).max
        low, high = apply_windowing(np.array([-far, far], np.float64), header)
        values = apply_windowing(values, header)
    elif header.get("VOILUTSequence"):
        values, low, high = _looked_up(values, header.VOILUTSequence[0]), 0.0, 1.0
    if not (np.isfinite([low, high]).all() and np.isfinite(values).all()):
        raise DataError("its rescaling or its window gives no finite values", HINT)
    light = np.clip((values - low) / (high - low or 1.0), 0.0, 1.0)
    if header.PhotometricInterpretation == "MONOCHROME1":
        light = 1.0 - light
    return cast(npt.NDArray[np.uint8], np.rint(light * 255).astype(np.uint8))


def _looked_up(values: npt.NDArray[Any], item: Dataset) -> npt.NDArray[np.float64]:
    """A VOI LUT (C.11.2.1.1), to 0..1. pydicom's own wraps around in tables of 8 bits."""
    entries, first, bits = (int(one) for one in item.LUTDescriptor)
    raw = item.LUTData
    words = (
        np.frombuffer(raw, "<u2")
        if isinstance(raw, bytes)
        else np.atleast_1d(raw).astype(np.uint16)
    )
    last = min(entries or 1 << 16, len(words)) - 1
    if last < 0 or not 1 <= bits <= 16:
        raise DataError(f"a table of {last + 1} values of {bits} bits", HINT)
    index = np.clip(np.rint(values) - first, 0, last).astype(np.intp)
    return np.asarray(words[index] / (2.0**bits - 1), np.float64)


def _palette(values: npt.NDArray[Any], header: Dataset) -> npt.NDArray[np.uint8]:
    if "SegmentedRedPaletteColorLookupTableData" in header:  # a few bytes unfold to gigabytes
        raise DataError("a segmented palette cannot be decoded", HINT)
    entries, first, _ = header.RedPaletteColorLookupTableDescriptor
    values = np.clip(values.astype(np.int32), first, first + (entries or 1 << 16) - 1)
    return _eight_bits(apply_color_lut(values, header)[..., :3])


def _eight_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return (values >> 8 * (values.dtype.itemsize - 1)).astype(np.uint8)
