"""Embed every tissue tile of a slide: python embed_a_slide.py [SLIDE] [OUTPUT.npz]"""

import sys

import numpy as np

import coverslip
from coverslip.engine.demo import SAMPLE

path, output = (sys.argv[1:] + [str(SAMPLE), "features.npz"][len(sys.argv) - 1 :])[:2]

slide = coverslip.open_slide(path)
tissue = coverslip.find_tissue(slide)
grid = coverslip.TileGrid.over(slide, tile=256, mpp=0.5, tissue=tissue)
encoder = coverslip.load_encoder("efficientnet-lite0")
stream = coverslip.TileStream(slide, grid)
features = np.concatenate([encoder.encode(batch.pixels) for batch in stream])

np.savez(output, features=features, boxes=grid.boxes)
print(f"{slide.name}: {len(grid)} tiles at {grid.mpp} µm/px, features {features.shape}")
