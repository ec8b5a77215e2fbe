"""Which words, names and tags tell who a patient is, or lead to one.

Metadata fields are judged by their names, whatever the scanner; file names by patterns. A field is
an identifier where it points to a person, a case, a place, a machine or a day.
"""

from __future__ import annotations

import re

FIELD_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(words, re.IGNORECASE))
    for kind, words in (
        ("barcode", r"bar.?code"),
        ("patient", r"patient|surname|given.?name|birth|\bsex\b|\bmrn\b|medical.?record"),
        ("case", r"accession|specimen|container.?id|(case|study|slide|sample|block).?(id\b|name|n"
                 r"umber)|^reference$|^title$|image.?id\b|project|label.?(text|id)"),
        ("operator", r"user|operator|technician|physician|author|artist|creator|experimenter|"
                     r"e.?mail|owner|performed|requested"),
        ("place", r"institution|hospital|department|station|host.?computer|address|telephone"),
        ("scanner", r"serial|\bs/?n\b|scanscope.?id|(scanner|hardware|device|machine|unit|dsr).*"
                    r"(id\b|number)|^dsr id$"),
        ("date", r"date|(?<!exposure)(?<!exposure.)(?<!life)time(?!.?scale)|created|modified"),
        ("file name", r"file.?name|\bpath\b|folder|directory|document.?name"),
        ("unique id", r"u?uid$|guid"),
        ("comment", r"comment|description|\bnotes?\b|remark|annotation"),
    )
)  # fmt: skip
"""Kind -> what a field's name holds; the first that fits counts."""

NAME_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("TCGA barcode", r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(-[A-Z0-9]{2,4})*"),
        ("accession number", r"(?<![A-Z0-9])[A-Z]{1,3}[-_ ]?(?:19|20)?\d\d[-_ ]\d{3,7}(?!\d)"),
        ("accession number", r"(?<!\d)(?:19|20)\d\d[-_ ]?[A-Z]{1,2}[-_ ]?\d{3,7}(?!\d)"),
        ("date", r"(?<!\d)(?:19|20)\d\d([-_. ]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?!\d)"),
        ("date", r"(?<!\d)(?:0?[1-9]|[12]\d|3[01])([-_.])(?:0?[1-9]|[12]\d)\1(?:19|20)\d\d(?!\d)"),
        ("record number", r"(?<![A-Z])(?:MRN|PAT(?:IENT)?(?:ID)?|PID)[-_ ]?\d{3,}"),
        ("record number", r"(?<![0-9A-F])\d{7,12}(?![0-9A-F])"),
        ("person's name", r"[A-Z]{2,}\^[A-Z]{2,}"),
    )
)  # fmt: skip
"""Kind -> what a file's name holds: TCGA barcodes, accession numbers (S21-12345), days, MRNs."""

PLAIN_APERIO = frozenset(
    {
        *("appmag", "mpp", "stripewidth", "parmset", "left", "top", "linecameraskew"),
        *("lineareaxoffset", "lineareayoffset", "focus offset", "originalwidth", "originalheight"),
        *("filtered", "icc profile", "exposure time", "exposure scale", "displaycolor", "gamma"),
        *("sessionmode", "rack", "slide", "jp2", "quality", "offsetz", "totaldepth"),
        *("adjust", "skew", "scanwhitepointred", "scanwhitepointgreen", "scanwhitepointblue"),
    }
)
"""Fields of an Aperio description that say nothing of a patient; every other one is shown."""

_SIZE = r"\d{1,7}x\d{1,7}"
_TOKEN = (
    rf"(?:{_SIZE}|\[[\d,]{{1,20}} {_SIZE}\]|\({_SIZE}\)|->|-|;|label|macro|"
    r"J2K/(?:KDU|YUV16)|JPEG/(?:RGB|YCC)|LZW|RAW|Q=\d{1,3})"
)
_MAKER = r"Aperio (?:Image Library|Leica Biosystems GT ?\d{3}(?: DX)?)(?: v[\d.]{1,16})?"
APERIO_HEADER = re.compile(
    rf"{_MAKER}\s*(?:{_TOKEN}\s*)*(?:;?{_MAKER}\s*(?:{_TOKEN}\s*)*)*;?\s*", re.ASCII
)
"""An Aperio description up to its first field, where it holds sizes and compressions only."""

DICOM_CONFIDENTIAL = frozenset(
    {
        *("AccessionNumber", "AcquisitionComments", "AcquisitionDate", "AcquisitionDateTime"),
        *("AcquisitionTime", "AdmissionID", "AdmittingDate", "AdmittingTime", "Allergies"),
        *("BarcodeValue", "ContainerIdentifier", "ContentCreatorName", "ContentDate"),
        *("ContentTime", "CountryOfResidence", "DeviceSerialNumber", "DeviceUID", "EthnicGroup"),
        *("FrameOfReferenceUID", "InstanceCreationDate", "InstanceCreationTime"),
        *("InstanceCreatorUID", "InstitutionAddress", "InstitutionName", "IssuerOfPatientID"),
        *("InstitutionalDepartmentName", "ImageComments", "LabelText", "MedicalAlerts"),
        *("NameOfPhysiciansReadingStudy", "Occupation", "OperatorsName", "OtherPatientIDs"),
        *("OtherPatientNames", "PatientAddress", "PatientAge", "PatientBirthDate"),
        *("PatientBirthName", "PatientBirthTime", "PatientComments", "PatientID"),
        *("PatientMotherBirthName", "PatientName", "PatientReligiousPreference", "PatientSex"),
        *("PatientSize", "PatientTelephoneNumbers", "PatientWeight", "PerformedProcedureStepID"),
        *("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime"),
        *("PerformingPhysicianName", "PersonName", "PlateID", "ReferringPhysicianName"),
        *("RequestedProcedureID", "RequestingPhysician", "SOPInstanceUID", "SeriesDate"),
        *("SeriesDescription", "SeriesInstanceUID", "SeriesTime", "SlideIdentifier"),
        *("SpecimenIdentifier", "SpecimenUID", "SpecimenDetailedDescription"),
        *("SpecimenShortDescription", "StationName", "StudyDate", "StudyDescription", "StudyID"),
        *("StudyInstanceUID", "StudyTime", "DimensionOrganizationUID", "PyramidUID"),
        *("DateOfLastCalibration", "TimeOfLastCalibration", "TimezoneOffsetFromUTC"),
        *("ReferencedSOPInstanceUID", "AcquisitionUID", "ConcatenationUID", "PyramidLabel"),
    }
)
"""Attributes of DICOM slides in the Basic Application Level Confidentiality Profile (PS3.15,
Table E.1-1), by keyword."""

TAG_KINDS = {
    **{269: "file name", 285: "file name", 306: "date", 315: "operator", 316: "place"},
    **{33432: "operator", 700: "XMP", 33723: "IPTC", 34377: "Photoshop", 34665: "Exif"},
    **{34853: "Exif", 36867: "date", 36868: "date", 37510: "comment", 42016: "unique id"},
    **{42032: "operator", 42033: "scanner", 40092: "comment", 40093: "operator"},
    **{305: "software", 271: "software", 272: "software"},
}
"""TIFF tag -> what it identifies by; "software" (program, maker, model) is read as a field."""

PLAIN_TAGS = frozenset(
    {
        *(254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284),
        *(286, 287, 290, 291, 296, 297, 317, 318, 319, 320, 322, 323, 324, 325, 330, 332, 338, 339),
        *(340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 32995),
        *(32996, 32997, 32998, 34675),
    }
)
"""TIFF tags that say how pixels are stored and coloured."""

BINARY_TAGS = frozenset({347, 34675})
"""Of these, JPEG tables and ICC profile, whose type is bytes."""


def field_kind(name: str) -> str:
    """What a metadata field of that name identifies by; "" for none."""
    return next((kind for kind, words in FIELD_KINDS if words.search(name)), "")
