"""What identifies a patient: found where it was planted, and only there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from planted import PLANTED, SECRETS, write_planted
from pyramids import address_pixels, write_pyramid

from coverslip.cli import main
from coverslip.wsi import identifiers
from coverslip.wsi.identifiers import identifiers_of, name_identifiers
from coverslip.wsi.tile_comments import tile_comments, without_comments
from coverslip.wsi.xml_identifiers import xml_identifiers


def test_everything_planted_in_an_svs_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_planted(tmp_path / "S21-12345 Doe.svs", address_pixels(600, 500))
    found = identifiers_of(str(path))
    values = {each.value for each in found}
    assert set(SECRETS) <= values
    kinds = {each.where.rpartition(": ")[2]: each.kind for each in found}
    assert kinds["Barcode"] == "barcode"
    assert kinds["User"] == "operator"
    assert kinds["ScanScope ID"] == "scanner"
    assert {"label", "macro"} <= {each.kind for each in found}
    assert ("accession number", "file name", "S21-12345") in {
        (each.kind, each.where, each.value) for each in found
    }
    assert not values & {"20", "0.4990", "2040"}
    assert main(["info", str(path), "--phi", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert len(row["identifiers"]) == len(found)
    assert main(["info", str(path), "--phi"]) == 0
    assert PLANTED["Barcode"] in capsys.readouterr().out
    assert main(["info", str(path), "--json"]) == 0
    plain = capsys.readouterr().out
    assert not [secret for secret in SECRETS if secret in plain]


def test_a_plain_pyramid_holds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pyramid(tmp_path / "a.tif", address_pixels(600, 500), levels=2)
    assert identifiers_of(str(tmp_path / "a.tif")) == []
    (tmp_path / "b.tif").write_bytes(b"II*\0" + bytes(40))
    assert main(["info", str(tmp_path), "--phi"]) == 1
    assert "nothing found; pixels were not looked into" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("TCGA-CR-7395-01Z-00-DX1", "TCGA barcode"),
        ("S21-12345_A1", "accession number"),
        ("SP-19-0044321", "accession number"),
        ("2021-S-004432 HE", "accession number"),
        ("scan 2021-03-17", "date"),
        ("17.03.2021 HE", "date"),
        ("20210317_HE", "date"),
        ("MRN_88123", "record number"),
        ("case 88123456", "record number"),
        ("DOE^JANE", "person's name"),
    ],
)
def test_names_that_identify(name: str, kind: str) -> None:
    assert kind in {each.kind for each in name_identifiers(name)}


@pytest.mark.parametrize(
    "name", ["CMU-1-Small-Region", "crohn-biopsy-20x", "slide_0042", "a3f0c9", "HE_example", "B2"]
)
def test_names_that_do_not(name: str) -> None:
    assert name_identifiers(name) == []


def test_a_generic_tiff_s_tags_and_pictures_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(address_pixels(600, 500), tile=(256, 256), photometric="rgb", metadata=None,
                   description="Jane Quillfeather, left",
                   extratags=[(700, 1, 5, b"<xmp>", True)])  # fmt: skip
        file.write(np.zeros((90, 80, 3), np.uint8), photometric="rgb", metadata=None)
    kinds = {(each.kind, each.value) for each in identifiers_of(str(path))}
    assert ("comment", "Jane Quillfeather, left") in kinds
    assert ("picture", "may show the label, names, a barcode") in kinds
    assert any("XML" in each.where for each in identifiers_of(str(path)))


def test_words_in_tags_meant_for_numbers_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(address_pixels(300, 300), tile=(256, 256), photometric="rgb", metadata=None,
                   extratags=[(286, 2, 0, "Quillfeather", True)])  # fmt: skip
    assert "Quillfeather" in {each.value for each in identifiers_of(str(path))}


def test_xml_of_ome_and_philips() -> None:
    ome = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" Creator="x">'
        '<Experimenter ID="E:0" LastName="Oglethorpe"/><Instrument><Microscope SerialNumber="8"/>'
        '</Instrument><Image ID="I:0" Name="Quillfeather"><AcquisitionDate>2021-03-17T14:22:07'
        '</AcquisitionDate><Pixels ID="P" SizeX="9" PhysicalSizeX="0.25"/></Image>'
        '<MapAnnotation><Value><M K="Patient ID">55512345</M><M K="zoom">2</M></Value>'
        "</MapAnnotation></OME>"
    )
    found = {(kind, value) for kind, _, value in xml_identifiers(ome)}
    assert found == {
        *(("operator", "Oglethorpe"), ("scanner", "8"), ("file name", "Quillfeather")),
        *(("date", "2021-03-17T14:22:07"), ("patient", "55512345")),
    }
    philips = (
        '<DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="PIM_DP_UFS_BARCODE" Group="0x301D">UzIx</Attribute>'
        '<Attribute Name="DICOM_DEVICE_SERIAL_NUMBER">FMT0115</Attribute>'
        '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject>'
        '<Attribute Name="PIM_DP_IMAGE_TYPE">LABELIMAGE</Attribute></DataObject></Array>'
        "</Attribute>"
        '<Attribute Name="DICOM_BITS_STORED">8</Attribute></DataObject>'
    )
    kinds = {kind for kind, _, _ in xml_identifiers(philips)}
    assert kinds == {"barcode", "scanner", "label"}
    bomb = '<!DOCTYPE a [<!ENTITY b "b">]><a>&b;</a>'
    assert [kind for kind, _, _ in xml_identifiers(bomb)] == ["comment"]


@pytest.mark.parametrize(
    ("vendor", "name", "kind"),
    [
        ("dicom", "dicom.PatientName", "DICOM"),
        ("dicom", "dicom.SpecimenDescriptionSequence[0].SpecimenIdentifier", "DICOM"),
        ("dicom", "dicom.SOPClassUID", None),
        ("dicom", "dicom.NumberOfFrames", None),
        ("mirax", "mirax.GENERAL.SLIDE_NAME", "case"),
        ("mirax", "mirax.GENERAL.SLIDE_CREATIONDATETIME", "date"),
        ("mirax", "mirax.NONHIERLAYER_1_SECTION.SCANNER_HARDWARE_ID", "scanner"),
        ("mirax", "mirax.GENERAL.OBJECTIVE_MAGNIFICATION", None),
        ("hamamatsu", "hamamatsu.NDP.S/N", "scanner"),
        ("hamamatsu", "hamamatsu.Reference", "case"),
        ("leica", "leica.barcode", "barcode"),
        ("ventana", "ventana.UserName", "operator"),
        ("ventana", "openslide.mpp-x", None),
    ],
)
def test_properties_that_openslide_reads(vendor: str, name: str, kind: str | None) -> None:
    slide = SimpleNamespace(reader="openslide", vendor=vendor, properties={name: "X 1"})
    found = [each.kind for each in identifiers._in_properties(slide)]
    assert found == ([] if kind is None else [kind])


def test_exif_and_text_of_an_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[315] = "Dr Ambrosius"
    exif.get_ifd(0x8769)[36867] = "2021:03:17 14:22:07"
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", exif=exif, comment=b"Quillfeather")
    values = {each.value for each in identifiers_of(str(tmp_path / "a.jpg"))}
    assert {"Dr Ambrosius", "2021:03:17 14:22:07", "Quillfeather"} <= values


@given(st.lists(st.binary(max_size=40), max_size=5), st.binary(max_size=60))
def test_comments_go_and_the_rest_of_a_jpeg_stays(words: list[bytes], pixels: bytes) -> None:
    scan = b"\xff\xda\x00\x02" + pixels
    tables = b"\xff\xdb\x00\x04ab"
    spoken = b"".join(
        b"\xff\xfe" + (len(w) + 2).to_bytes(2, "big") + b"#" + w[: len(w) - 1] if w else b""
        for w in words
    )
    stream = b"\xff\xd8" + tables + spoken + tables + scan
    assert without_comments(stream) == b"\xff\xd8" + tables + tables + scan
    assert list(tile_comments(without_comments(stream))) == []


@given(st.binary(max_size=200))
def test_any_bytes_may_be_asked_for_comments(data: bytes) -> None:
    for start in (b"\xff\xd8", b"\xff\x4f", b""):
        assert len(without_comments(start + data)) <= len(start + data)
