"""Slides full of identifiers, each string of which can be looked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import simplejpeg
import tifffile

from coverslip.wsi.slide import RGB

PLANTED = {
    "ScanScope ID": "SSCS0451Q",
    "Filename": "Quillfeather-Jane",
    "Date": "03/17/21",
    "Time": "14:22:07",
    "User": "tech.oglethorpe",
    "Barcode": "S21-0098123;A1",
    "Title": "Quillfeather left breast",
    "ImageID": "77310042",
}
SECRETS = (
    *(*PLANTED.values(), "Dr Ambrosius", "2021:03:17 14:22:07", "PC-PATH-0231", "private serial 8"),
    *("Mercy Hospital", "MRN55512345"),
)
PLAIN = {"AppMag": "20", "StripeWidth": "2040", "MPP": "0.4990"}


def aperio_text(first: str, fields: dict[str, str]) -> str:
    return "|".join([first, *(f"{name} = {value}" for name, value in fields.items())])


def write_planted(
    path: Path, image: RGB, *, bigtiff: bool = False, byteorder: str = "<", comment: bytes = b""
) -> Path:
    """An SVS of two levels, thumbnail, label and macro in which everything names the patient.

    comment   put into every tile's JPEG stream
    """
    height, width = image.shape[:2]
    header = f"Aperio Image Library v11.2.1 \r\n{width}x{height} [0,0 {width}x{height}] (256x256)"
    text = aperio_text(f"{header} JPEG/RGB Q=90", {**PLAIN, **PLANTED})
    extra = [
        (315, 2, 0, "Dr Ambrosius", True),
        (316, 2, 0, "PC-PATH-0231", True),
        (65001, 2, 0, "private serial 8", True),
        (33432, 2, 0, "Mercy Hospital", True),
    ]
    grey = np.random.default_rng(3).integers(0, 255, (180, 160, 3)).astype(np.uint8)
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as file:
        _write_level(file, image, text, comment, subfiletype=0, extratags=extra,
                     datetime="2021:03:17 14:22:07", iccprofile=b"icc" * 50)  # fmt: skip
        thumbnail = np.ascontiguousarray(image[::8, ::8])
        small = (
            f"Aperio Image Library v11.2.1 \r\n{width}x{height} -> {width // 8}x{height // 8} - "
        )
        file.write(thumbnail, photometric="rgb", description=aperio_text(small, PLANTED),
                   metadata=None, compression="lzw", subfiletype=0)  # fmt: skip
        half = np.ascontiguousarray(image[::2, ::2])
        lower = f"{header} -> {width // 2}x{height // 2} JPEG/RGB Q=90|{PLANTED['User']}"
        _write_level(file, half, lower, comment, subfiletype=1)
        for name, kind in (("label 160x180", 1), ("macro 160x180", 9)):
            file.write(grey + kind, photometric="rgb", subfiletype=kind, metadata=None,
                       compression="lzw", software="MRN55512345",
                       description=f"Aperio Image Library v11.2.1 \r\n{name}")  # fmt: skip
    with open(path, "ab") as tail:
        tail.write(b"Quillfeather-Jane, in bytes that nothing points to")
    return path


def _write_level(file: tifffile.TiffWriter, image: RGB, text: str, comment: bytes, **more) -> None:  # type: ignore[no-untyped-def]
    file.write(
        iter(_tiles(image, comment)),
        shape=image.shape,
        dtype=np.uint8,
        tile=(256, 256),
        photometric="ycbcr",
        compression="jpeg",
        subsampling=(2, 2),
        description=text,
        metadata=None,
        software=False,
        **more,
    )


def _tiles(image: RGB, comment: bytes) -> list[bytes]:
    padded = np.pad(image, ((0, -image.shape[0] % 256), (0, -image.shape[1] % 256), (0, 0)), "edge")
    tiles = []
    for y in range(0, image.shape[0], 256):
        for x in range(0, image.shape[1], 256):
            tile = np.ascontiguousarray(padded[y : y + 256, x : x + 256])
            stream = simplejpeg.encode_jpeg(tile, 90, colorsubsampling="420")
            if comment:
                segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
                stream = stream[:2] + segment + stream[2:]
            tiles.append(stream)
    return tiles
