"""Nuclei of a slide as a table: python nuclei_to_table.py [FOLDER]"""

import sys
from pathlib import Path

import pyarrow.parquet as pq

import coverslip
from coverslip.engine.demo import SAMPLE

output = Path(sys.argv[1] if len(sys.argv) > 1 else "nuclei")
config = coverslip.RunConfig(encoder=(), nuclei="watershed", export=("parquet", "geojson"))
(result,) = coverslip.Run.over([SAMPLE], output, config).execute()

table = pq.read_table(output / "parquet" / f"{result.slide}.nuclei_watershed.parquet")
area = table["area_um2"].to_numpy()
print(f"{len(table)} nuclei in {result.tissue_mm2:.2f} mm², mean area {area.mean():.0f} µm²")
