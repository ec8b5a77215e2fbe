"""Slides as one table, and their nuclei by SQL: python cohort_table.py [SLIDE...]"""

import sys
from pathlib import Path

import coverslip
from coverslip.cohort.cohort import Cohort
from coverslip.engine.demo import SAMPLE

output = Path("cohort")
config = coverslip.RunConfig(encoder=(), nuclei="watershed")
coverslip.Run.over(sys.argv[1:] or [SAMPLE], output, config).execute()

cohort = Cohort.open(output)  # clinical="patients.csv" joins what is known of the patients
table = cohort.table()
table.to_csv(output / "cohort.csv")
shown = ["tissue_mm2", "nuclei", "nuclei_per_mm2", "nucleus_area_um2_p50", "ripley_l_50um"]
print(table[shown].to_string())

large = "select slide, count(*) as large from nuclei where area_um2 > 80 group by slide"
print(cohort.sql(large).df())
