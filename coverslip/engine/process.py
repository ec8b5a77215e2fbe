"""One slide, from file to outputs: tissue, grid, one pass over the pixels, exports."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coverslip.durable import remove_unfinished, replace_file
from coverslip.engine.clock import Clock
from coverslip.engine.config import RunConfig
from coverslip.engine.disclosure import kept_properties
from coverslip.engine.exports import draw_maps, write_exports
from coverslip.engine.journal import Journal
from coverslip.engine.opening import open_for_run
from coverslip.engine.pixel_pass import run_pixel_pass
from coverslip.engine.result import SlideResult
from coverslip.engine.slide_stage import embed_slide
from coverslip.engine.staging import StagedSlide
from coverslip.engine.stain_stage import stain_normalizer, target_profile
from coverslip.engine.survey import Survey, grid_for, region_for
from coverslip.errors import CoverslipError, StoreBusy
from coverslip.tiling.lock import lock
from coverslip.tiling.overlay import overview
from coverslip.tiling.quality import QualityLimits
from coverslip.tiling.reading import OnBadTile, thumbnail
from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import METHOD, Tissue, find_tissue
from coverslip.tiling.tissue_mask import TissueSettings
from coverslip.wsi.facts import slide_facts
from coverslip.wsi.fingerprint import fingerprint
from coverslip.wsi.naming import file_name
from coverslip.wsi.slide import Slide

if TYPE_CHECKING:
    from coverslip.encoders.encoder import Encoder
    from coverslip.encoders.slide_encoder import SlideEncoder
    from coverslip.heads.registry import NucleusHead
    from coverslip.heads.tissue_map import TissueHead
    from coverslip.kernels.stain_profile import StainProfile

SOUND = {"tissue", "background", "unlabelled"}
"""Classes of artefact models that are none."""

Observer = Callable[[str, str, int, int], None]
"""Called with (slide id, stage, done, total) as work goes on."""


@dataclass(frozen=True)
class RunContext:
    """What all slides of a run share: where to write, whom to tell, and the loaded encoders.

    threads, device   of this process, where several share the run
    """

    output: Path
    config: RunConfig
    journal: Journal
    threads: int
    device: str = "auto"
    observer: Observer = field(default=lambda slide, stage, done, total: None)

    @cached_property
    def encoders(self) -> list[Encoder]:
        """The configured encoders, loaded once, when the first slide needs them."""
        from coverslip.encoders.loading import load_encoder

        return [
            load_encoder(
                name,
                weights=self.config.weights or None,
                device=self.device,
                precision=self.config.precision,
                compiled=self.config.compile,
                trust_remote_code=self.config.trust_remote_code,
            )
            for name in self.config.encoder
        ]

    @cached_property
    def slide_encoders(self) -> list[SlideEncoder]:
        """The configured slide encoders, loaded once."""
        from coverslip.encoders.slide_encoder import load_slide_encoder

        return [
            load_slide_encoder(
                name,
                weights=self.config.slide_weights or None,
                device=self.device,
                trust_remote_code=self.config.trust_remote_code,
            )
            for name in self.config.slide_encoder
        ]

    @cached_property
    def nucleus_head(self) -> NucleusHead | None:
        """The configured nucleus model, loaded once."""
        from coverslip.heads.registry import load_nucleus_head

        name, views = self.config.nuclei, self.config.nucleus_views
        return load_nucleus_head(name, self.device, views) if name else None

    @cached_property
    def tissue_head(self) -> TissueHead | None:
        """The configured tissue map, loaded once."""
        path = self.config.tissue_map
        if not path:
            return None  # torch takes seconds to import
        from coverslip.heads.tissue_map import TissueHead

        return TissueHead.load(Path(path), self.device)

    @cached_property
    def stain_target(self) -> StainProfile:
        """Whose colours tiles take; read or fitted once."""
        return target_profile(self.config)


def process_or_explain(
    path: str,
    slide_id: str,
    context: RunContext,
    debug: bool,
    staged: StagedSlide | None = None,
) -> SlideResult | None:
    """One slide's row, whatever happens to it; None where another process has it in hand.

    staged   where it is read from, if not at `path`
    debug    bugs propagate
    """
    journal, read_from = context.journal, staged.path if staged else path
    journal.write("slide", slide=slide_id, file=file_name(path))
    try:
        result = process_slide(read_from, slide_id, context)
        if staged and staged.remark:
            result.flags.append(staged.remark)
    except StoreBusy as error:
        journal.write("slide put off", slide=slide_id, problem=error.problem)
        return None
    except CoverslipError as error:
        if debug:
            journal.write("traceback", slide=slide_id, text=traceback.format_exc())
        reason = str(error).replace(read_from, path)
        result = SlideResult(slide_id, file_name(path), status="failed", reason=reason)
    except Exception as error:
        if debug:
            raise
        journal.write("traceback", slide=slide_id, text=traceback.format_exc())
        reason = (
            f"{file_name(path)}: unexpected {type(error).__name__}: {error}\n"
            "  this is a fault of the engine; run with --debug for the traceback"
        )
        result = SlideResult(slide_id, file_name(path), status="failed", reason=reason)
    journal.write("slide ended", settings=context.config.digest, **asdict(result))
    return result


def process_slide(path: str, slide_id: str, context: RunContext) -> SlideResult:
    """Bring one slide's store and exports up to date; what is complete already is left alone.

    Raises CoverslipError: about the slide, its store or the encoder. What was finished before
    stays, and the next run goes on from there.
    """
    clock = Clock()
    result = SlideResult(slide=slide_id, file=file_name(path))
    store_path = context.output / f"{slide_id}.zarr"
    with clock("opening"), open_for_run(path, context.config) as slide, lock(store_path):
        _describe(slide, result)
        pictures = context.output / "report" / slide_id
        remove_unfinished(pictures)
        remove_unfinished(pictures / "maps")
        facts = {**slide_facts(slide), "fingerprint": fingerprint(path)}
        if kept := kept_properties(slide.properties, context.config.keep_identifiers):
            facts["identifiers"] = kept
        store = SlideStore.open_or_create(store_path, facts)
        _run_stages(slide, store, context, clock, result)
    inner = sum(v for k, v in clock.seconds.items() if k != "opening")
    clock.seconds["opening"] = max(0.0, clock.seconds["opening"] - inner)
    result.seconds = clock.seconds
    return result


def _describe(slide: Slide, result: SlideResult) -> None:
    result.size, result.mpp, result.reader = slide.size, slide.mpp, slide.reader
    if slide.pixel_size is not None:
        result.mpp_source = slide.pixel_size.source


def _run_stages(
    slide: Slide, store: SlideStore, context: RunContext, clock: Clock, result: SlideResult
) -> None:
    survey = _survey(slide, store, context, clock)
    result.tiles = len(survey.grid.boxes)
    result.tissue_mm2 = survey.tissue.area_um2(slide.mpp) / 1e6
    _flag_scale(slide, context.config, result)
    _draw_overview(slide, survey, context, clock, result)
    normalizer = stain_normalizer(slide, store, survey.tissue, context, clock, result)
    changed = run_pixel_pass(slide, store, survey, context, clock, result, normalizer)
    changed |= embed_slide(store, survey.grid, context, clock)
    _flag_quality(store, survey, result)
    _flag_artefacts(store, survey, context, result)
    changed |= _keep_image(slide, store, context, clock, result)
    changed |= draw_maps(store, context.output, clock, result)
    changed |= write_exports(store, context, clock, result)
    if survey.tissue.is_empty or not len(survey.grid.boxes):
        result.status = "no tissue"
        result.reason = (
            "no tissue was found; the picture shows what was looked at\n"
            "  a faint slide: give the region with --region FILE.geojson, or --no-tissue"
        )
    elif not changed:
        result.status = "unchanged"


def _survey(slide: Slide, store: SlideStore, context: RunContext, clock: Clock) -> Survey:
    """Tissue and grid, from the store where they are current."""
    config = context.config
    region = region_for(slide, config)
    parameters: dict[str, Any] = {
        "method": METHOD,
        "settings": TissueSettings().to_dict(),
        "region": [polygon.wkt for polygon in region] if region is not None else None,
    }
    if store.is_current("tissue", parameters):
        tissue = Tissue.from_store(store.group("tissue"))
    else:
        with clock("tissue"), store.stage("tissue", parameters) as stage:
            tissue = find_tissue(slide, region=region)
            tissue.write(stage)
    grid = grid_for(slide, tissue, config)
    return Survey(tissue, grid)


def _flag_scale(slide: Slide, config: RunConfig, result: SlideResult) -> None:
    coarser = max(slide.mpp) / config.mpp
    if coarser > 1.05:
        result.flags.append(
            f"the slide's finest pixels measure {max(slide.mpp):.4g} µm: tiles at "
            f"{config.mpp:g} µm are enlarged {coarser:.2f} times and hold no more detail"
        )


def _keep_image(
    slide: Slide, store: SlideStore, context: RunContext, clock: Clock, result: SlideResult
) -> bool:
    """The slide as an OME-NGFF pyramid, if asked for; True if anything was written."""
    config = context.config
    if config.image == "none":
        return False
    from coverslip.tiling.pyramid import image_parameters, write_image

    portable = config.image == "portable"
    on_bad_tile: OnBadTile = "raise" if config.on_bad_tile == "fail" else "blank"
    parameters = image_parameters(portable=portable, on_bad_tile=on_bad_tile)
    if store.is_current("image", parameters):
        return False
    with clock("image"), store.stage("image", parameters) as stage:
        bad = write_image(
            slide,
            stage,
            portable=portable,
            on_bad_tile=on_bad_tile,
            threads=context.threads,
            observer=lambda done, total: context.observer(result.slide, "image", done, total),
        )
    if bad:
        result.flags.append(f"{len(bad)} tiles of the image could not be read and are white")
    return True


def _flag_quality(store: SlideStore, survey: Survey, result: SlideResult) -> None:
    name = f"quality/{survey.grid.name}"
    if name not in store.stages("quality/"):
        return
    quality, limits = store.group(name), QualityLimits()
    for what, share in (
        ("blurry", (quality["focus"][:] < limits.blurry).mean()),
        ("marked with pen", (quality["pen"][:] > limits.pen).mean()),
    ):
        if share > 0.05:
            result.flags.append(f"{share:.0%} of the tiles look {what}")
    if survey.tissue.pen > 0.01:
        result.flags.append(f"pen marks cover {survey.tissue.pen:.0%} of the slide; left out")


def _flag_artefacts(
    store: SlideStore, survey: Survey, context: RunContext, result: SlideResult
) -> None:
    """What an artefact model among the encoders found on more than a twentieth of the tiles."""
    if not len(survey.grid.boxes):
        return
    for encoder in context.encoders:
        if encoder.spec.pooling != "class-shares":
            continue
        shares = store.group(f"features/{encoder.name}@{survey.grid.name}")["features"][:]
        result.flags += [
            f"{name} on {share:.0%} of the tiles' area, by {encoder.name}"
            for name, share in zip(encoder.spec.columns, shares.mean(axis=0), strict=True)
            if name not in SOUND and share > 0.05
        ]


def _draw_overview(
    slide: Slide, survey: Survey, context: RunContext, clock: Clock, result: SlideResult
) -> None:
    """`report/<slide>/overview.jpg`: the slide with its tissue outline and tile grid."""
    path = context.output / "report" / result.slide / "overview.jpg"
    result.overview = path.relative_to(context.output).as_posix()
    if path.exists() and not clock.seconds.keys() & {"tissue", "tiles"}:
        return
    from simplejpeg import encode_jpeg

    with clock("overview"):
        picture = overview(thumbnail(slide), slide.size, survey.tissue.polygons, survey.grid.boxes)
        replace_file(path, encode_jpeg(picture, quality=88))
