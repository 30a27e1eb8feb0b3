"""The pixels of DICOM files."""

import struct
from collections.abc import Sequence
from io import BytesIO
from random import Random

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from client.institution.formats import dicom_header, dicom_pixels
from protocol.model.pictures import IMAGE_PIXELS
from tests.fuzz.mutations import of_bytes
from tests.fuzz.target import MIB, Target

SIDE = 8
_MARK = 132


def pixels(data: bytes) -> None:
    found = dicom_pixels.decode(data)
    assert found.mode in ("L", "RGB")
    assert (found.width, found.height) == dicom_header.measure(data)
    assert found.width * found.height <= IMAGE_PIXELS


def file_of(
    value: bytes, syntax: str, rows: int = SIDE, columns: int = SIDE, **tags: object
) -> bytes:
    """A file of 8-bit greys, or whatever ``tags`` say."""
    some, file = Dataset(), BytesIO()
    some.file_meta = FileMetaDataset()
    some.file_meta.TransferSyntaxUID = syntax
    some.file_meta.MediaStorageSOPClassUID = some.SOPClassUID = CTImageStorage
    some.file_meta.MediaStorageSOPInstanceUID = some.SOPInstanceUID = "1.2.3"
    some.Rows, some.Columns = rows, columns
    some.SamplesPerPixel, some.PhotometricInterpretation = 1, "MONOCHROME2"
    some.BitsAllocated = some.BitsStored = 8
    some.HighBit, some.PixelRepresentation = 7, 0
    for tag, given in tags.items():
        setattr(some, tag, given)
    for element in some:
        if element.keyword.endswith(("TableDescriptor", "LUTDescriptor")):
            element.VR = "US"
    some.PixelData = encapsulate([value]) if syntax in (RLELossless, JPEGBaseline8Bit) else value
    some["PixelData"].VR = "OB"
    some["PixelData"].is_undefined_length = syntax in (RLELossless, JPEGBaseline8Bit)
    some.save_as(file, enforce_file_format=True)
    return file.getvalue()


def run_lengths(count: int) -> bytes:
    """One segment of ``count`` zeros: two bytes for each 128."""
    whole, rest = divmod(count, 128)
    runs = b"\x81\0" * whole + (bytes([257 - rest, 0]) if rest else b"")
    return struct.pack("<16L", 1, 64, *[0] * 14) + runs


def jpeg(side: int) -> bytes:
    file = BytesIO()
    Image.new("L", (side, side), 90).save(file, "JPEG")
    return file.getvalue()


def pixels_seeds() -> Sequence[bytes]:
    ramp = bytes(range(SIDE * SIDE))
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 8], [0, 9, 99, 255]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    window = {"WindowCenter": "32", "WindowWidth": "9", "RescaleSlope": "2"}
    palette: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        palette[f"{colour}PaletteColorLookupTableData"] = b"\0\x09\x63\xff"
    plain = ExplicitVRLittleEndian
    return [
        file_of(ramp, plain, **window, RescaleIntercept="0"),
        file_of(ramp, ImplicitVRLittleEndian, PhotometricInterpretation="MONOCHROME1"),
        file_of(ramp, plain, VOILUTSequence=[table]),
        file_of(ramp, plain, **palette),
        file_of(
            np.zeros(64, np.int16).tobytes(), plain, BitsAllocated=16, BitsStored=12, HighBit=11
        ),
        file_of(ramp * 3, plain, NumberOfFrames=3),
        file_of(run_lengths(SIDE * SIDE), RLELossless),
        file_of(jpeg(SIDE), JPEGBaseline8Bit),
    ]


def behind_preamble(data: bytes, random: Random) -> bytes:
    """Change bytes behind the mark of the format, without which nothing else is read."""
    if random.random() < 0.05:
        return of_bytes(data, random)
    return data[:_MARK] + of_bytes(data[_MARK:], random)


def pixels_that_claim_much() -> Sequence[bytes]:
    """As many pixels as are allowed, in 600 kilobytes, and claims of more than there are."""
    side = int(IMAGE_PIXELS**0.5)
    plain = ExplicitVRLittleEndian
    return [
        file_of(run_lengths(side * side), RLELossless, side, side),
        file_of(run_lengths(20 * MIB), RLELossless),
        file_of(b"\0\0", plain, side, side),
        file_of(b"\0\0", plain, 65_535, 65_535),
        file_of(bytes(64), plain, NumberOfFrames=2**31 - 1),
        file_of(jpeg(2000), JPEGBaseline8Bit),
        file_of(jpeg(SIDE), JPEGBaseline8Bit, side, side),
        file_of(
            bytes(64), plain, ImageComments="x" * 9000, WindowCenter="1e308", WindowWidth="1e308"
        ),
    ]


TARGETS = {
    "dicom": Target(
        pixels,
        pixels_seeds,
        behind_preamble,
        (dicom_header, dicom_pixels),
        memory=20 * IMAGE_PIXELS + 16 * MIB,
        seconds=10.0,
        worst=pixels_that_claim_much,
    ),
}
