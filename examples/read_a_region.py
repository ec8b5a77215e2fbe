"""A region of a slide at an exact pixel size: python read_a_region.py [OUTPUT.png]"""

import sys

from PIL import Image

import coverslip
from coverslip.engine.demo import SAMPLE

with coverslip.open_slide(SAMPLE) as slide:
    box = coverslip.Box(x=600, y=1200, w=800, h=600)  # level-0 px
    pixels = coverslip.read_region(slide, box, mpp=0.8)  # uint8 [h, w, 3]
    print(f"{slide.mpp[0]} µm/px -> 0.8 µm/px: {pixels.shape[1]} x {pixels.shape[0]} px")

Image.fromarray(pixels).save(sys.argv[1] if len(sys.argv) > 1 else "region.png")
