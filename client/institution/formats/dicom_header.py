"""The header of a DICOM file: whose it is, and how large.

Of what identifies a patient only a hash leaves this module, for grouping. Every length in the file
is foreign: the header is read within bounds, and a file compressed as a whole is refused unread.
"""

import hashlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydicom import config, dcmread
from pydicom.dataset import Dataset

from client.institution.formats.source import BoundedFile
from protocol.errors import DataError
from protocol.model.pictures import IMAGE_PIXELS, IMAGE_SIDE

#: All that stands before the pixels: a CT has some kilobytes, an enhanced multi-frame megabytes.
HEADER_BYTES = 2 << 20
HINT = "export it again, uncompressed or as JPEG, or leave it out"
#: What a basic de-identification removes (PS3.15, table E.1-1), besides every person's name.
_NAMES = (
    "AccessionNumber AcquisitionDate AdmissionID AdmittingDate ContentDate DeviceSerialNumber "
    "EthnicGroup FrameOfReferenceUID ImageComments InstitutionAddress InstitutionName "
    "InstitutionalDepartmentName IssuerOfPatientID MedicalRecordLocator Occupation OtherPatientIDs "
    "OtherPatientIDsSequence PatientAddress PatientAge PatientBirthDate PatientBirthTime "
    "PatientComments PatientID PatientSex PatientTelephoneNumbers PerformedProcedureStepID "
    "ProtocolName ReferringPhysicianAddress ReferringPhysicianTelephoneNumbers "
    "RequestAttributesSequence SeriesDate SeriesInstanceUID SOPInstanceUID StationName StudyDate "
    "StudyID StudyInstanceUID StudyTime"
)
IDENTIFYING = frozenset(_NAMES.split())

# Values are checked where they are used; a library that warns of them would fill the screen.
config.settings.reading_validation_mode = config.IGNORE
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").propagate = False


def group_of(path: Path) -> str | None:
    """A hash of the patient's id, of the study's where there is none; None for neither."""
    try:
        with path.open("rb") as file:
            header = read_header(file, ["PatientID", "StudyInstanceUID"])
    except (DataError, OSError):
        return None  # decoding will say what is wrong with it
    named = str(header.get("PatientID") or header.get("StudyInstanceUID") or "").strip()
    return hashlib.blake2b(named.encode(), digest_size=8).hexdigest() if named else None


def identifying(data: bytes) -> tuple[tuple[str, ...], bool]:
    """Names of the tags that tell who the patient is, and whether the pixels may show a name.

    Raises DataError for a file that is no DICOM.
    """
    header = read_header(io.BytesIO(data))
    names = (
        element.keyword
        for element in header
        if element.value and (element.VR == "PN" or element.keyword in IDENTIFYING)
    )
    return tuple(sorted(set(names))), header.get("BurnedInAnnotation") == "YES"


def measure(data: bytes) -> tuple[int, int]:
    """Columns and rows, from the header; DataError for more than an image may have."""
    return measured(read_header(io.BytesIO(data)))


def read_header(file: BinaryIO, tags: list[str] | None = None) -> Dataset:
    """All before the pixels; leaves ``file`` at their element."""
    try:
        bounded = cast(BinaryIO, BoundedFile(file, HEADER_BYTES, HEADER_BYTES))
        return dcmread(bounded, stop_before_pixels=True, specific_tags=cast(Any, tags))
    except DataError as error:
        raise DataError(f"not readable as DICOM: {error.message}", HINT) from None
    except Exception as error:  # a parser that is fed foreign bytes may raise nearly anything
        raise DataError(f"not readable as DICOM: {type(error).__name__}: {error}", HINT) from error


def measured(header: Dataset) -> tuple[int, int]:
    """Columns and rows that a header tells, if an image may be as large."""
    columns, rows = int(header.get("Columns") or 0), int(header.get("Rows") or 0)
    if not 0 < columns * rows <= IMAGE_PIXELS or max(columns, rows) > IMAGE_SIDE:
        raise DataError(
            f"expected 1 to {IMAGE_PIXELS:,} pixels and at most {IMAGE_SIDE:,} a side, got "
            f"{columns} x {rows}",
            "leave it out if it is no image",
        )
    return columns, rows
