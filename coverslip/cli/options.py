"""The flags that several commands share; each is declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Slides = Annotated[
    list[str], typer.Argument(help="Slides: files, folders, globs, URLs.", show_default=False)
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for stores, exports and the report.")
]
Annotations = Annotated[
    Path | None,
    typer.Option(
        "--annotations",
        help="QuPath GeoJSON of the slide, or a folder of <slide>.geojson: Region* objects are "
        "areas in which every object is outlined.",
    ),
]
ImageMpp = Annotated[float | None, typer.Option("--image-mpp", help="µm per pixel of the images.")]
NucleusArea = Annotated[
    float | None,
    typer.Option("--nucleus-area", help="Where nobody knows it: µm² of their median nucleus."),
]
TrainingSettings = Annotated[
    Path | None, typer.Option("--config", help="TOML with the settings of the training.")
]
Start = Annotated[
    Path | None, typer.Option("--start", help="A head of that architecture to begin with.")
]
Licence = Annotated[str, typer.Option("--licence", help="Of the weights.")]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Look into folders' folders.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="TOML file with the same names as the flags.")
]
Mpp = Annotated[float | None, typer.Option("--mpp", help="Microns per pixel of the tiles. [0.5]")]
Tile = Annotated[int | None, typer.Option("--tile", help="Tile side in pixels at --mpp. [256]")]
Overlap = Annotated[int | None, typer.Option("--overlap", help="Pixels neighbours share. [0]")]
MinTissue = Annotated[
    float | None, typer.Option("--min-tissue", help="Least share of a tile that is tissue. [0.25]")
]
Tissue = Annotated[
    bool | None, typer.Option("--tissue/--no-tissue", help="Keep only tiles with tissue. [yes]")
]
Quality = Annotated[
    bool | None, typer.Option("--quality/--no-quality", help="Measure focus and pen. [yes]")
]
Region = Annotated[
    str | None, typer.Option("--region", help="QuPath GeoJSON: work only inside its polygons.")
]
RegionClass = Annotated[
    str | None, typer.Option("--region-class", help="Only the region's objects of this class.")
]
Stain = Annotated[
    str | None,
    typer.Option(
        "--stain", help="Normalise stains: none, macenko, vahadane, ruifrok, reinhard. [none]"
    ),
]
StainTarget = Annotated[
    str | None,
    typer.Option("--stain-target", help="Whose colours: a slide or a profile's JSON. [ours]"),
]
EncoderName = Annotated[
    str | None,
    typer.Option(
        "--encoder", help="Encoders, by comma; any timm model, or none. [efficientnet-lite0]"
    ),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="Local checkpoint, or a folder of <name>.safetensors."),
]
SlideEncoderName = Annotated[
    str | None,
    typer.Option(
        "--slide-encoder", help="Embed whole slides, too; by comma: mean, max, titan... [none]"
    ),
]
SlideWeights = Annotated[
    str | None, typer.Option("--slide-weights", help="As --weights, of the slide encoders.")
]
TrustRemoteCode = Annotated[
    bool | None,
    typer.Option(
        "--trust-remote-code/--no-remote-code",
        help="Run the code that some encoders' repositories hold. [no]",
    ),
]
ReplaceFeatures = Annotated[
    bool | None,
    typer.Option(
        "--replace-features/--keep-features",
        help="Embed again where another recipe of that name did. [keep]",
    ),
]
Nuclei = Annotated[
    str | None,
    typer.Option(
        "--nuclei", help="Nucleus model: default, watershed, or a trained head's .safetensors."
    ),
]
NucleusViews = Annotated[
    int | None,
    typer.Option(
        "--nucleus-views",
        help="Look for each nucleus again in so many turned views, 0 to 7: its agreement. [0]",
    ),
]
TissueMap = Annotated[
    str | None,
    typer.Option("--tissue-map", help="Map the tissue's classes: a trained head's .safetensors."),
]
Pixels = Annotated[
    str | None, typer.Option("--pixels", help="Keep the tiles' pixels: none, jpeg, lossless.")
]
Image = Annotated[
    str | None,
    typer.Option("--image", help="Keep the slide as OME-NGFF: none, carried, portable. [none]"),
]
Export = Annotated[
    str | None, typer.Option("--export", help="By comma: geojson, h5, clam, stamp, parquet.")
]
Icc = Annotated[bool | None, typer.Option("--icc/--no-icc", help="Apply the ICC profile. [no]")]
KeepIdentifiers = Annotated[
    str | None,
    typer.Option(
        "--keep-identifiers",
        help="Slide properties kept in the store, by comma (aperio.Date, aperio.*); paths: in the "
        "report. [none]",
    ),
]
OnBadTile = Annotated[
    str | None, typer.Option("--on-bad-tile", help="An undecodable part: fail or blank. [fail]")
]
AssumeMpp = Annotated[
    float | None, typer.Option("--assume-mpp", help="µm per pixel where a slide records none.")
]
MppTable = Annotated[
    str | None, typer.Option("--mpp-table", help="CSV slide,mpp that overrides the files.")
]
TrustObjective = Annotated[
    bool | None,
    typer.Option("--trust-objective", help="Take 10/power µm where nothing else is recorded."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="auto, cpu, cuda, cuda:1; by comma or all: a process each. [auto]"
    ),
]
Batch = Annotated[
    int | None, typer.Option("--batch", help="Tiles per encoder batch; 0: what memory holds. [0]")
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="Encoders: auto, float32, float16, bfloat16. [auto]"),
]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Encoders by torch.compile. [no]")
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="Decode threads; 0: what is granted. [0]")
]
ReadTimeout = Annotated[
    float | None, typer.Option("--read-timeout", help="Seconds before a read is killed. [60]")
]
CrossCheck = Annotated[
    bool | None,
    typer.Option("--cross-check/--no-cross-check", help="Compare a tile with OpenSlide. [yes]"),
]
Shard = Annotated[
    str,
    typer.Option(
        "--shard", metavar="I/N", help="Only the I-th of N parts of the slides, from 1: job arrays."
    ),
]
Scheduler = Annotated[
    str,
    typer.Option(
        "--scheduler",
        metavar="dask|ADDRESS",
        help="Dask hands out the slides: to workers here, or to those of tcp://node1:8786.",
    ),
]
Slurm = Annotated[
    str,
    typer.Option(
        "--slurm",
        metavar="OPTIONS",
        help="Workers in Slurm's jobs; sbatch's options, such as "
        "partition=gpu,time=8:00:00,mem=32G,cpus-per-task=8,gpus=1",
    ),
]
Workers = Annotated[
    int, typer.Option("--workers", help="Of --scheduler dask or --slurm. [one a GPU, or a job]")
]
Stage = Annotated[
    Path | None,
    typer.Option("--stage", help="Local folder: slides are copied there ahead of being read."),
]
StageLimit = Annotated[
    float, typer.Option("--stage-limit", help="GB of copies at once, of each process. [200]")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per slide on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
