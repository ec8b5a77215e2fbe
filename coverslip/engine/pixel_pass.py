"""One pass over a slide's pixels, feeding every output that is not complete yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from coverslip.engine.clock import Clock
from coverslip.engine.nucleus_output import NucleusOutput, nucleus_parameters, stages_of
from coverslip.engine.outputs import (
    FeatureOutput,
    Output,
    PixelOutput,
    QualityOutput,
    SampleOutput,
)
from coverslip.engine.result import SlideResult
from coverslip.engine.survey import Survey
from coverslip.engine.tissue_map_output import TissueMapOutput, tissue_map_parameters
from coverslip.errors import InvalidConfig, RecipeMismatch, printable
from coverslip.heads.depth import remarks
from coverslip.tiling.assembly import source_for
from coverslip.tiling.store import SlideStore
from coverslip.tiling.stream import StreamCounters, stream_windows
from coverslip.wsi.slide import Slide

if TYPE_CHECKING:
    from coverslip.engine.process import RunContext
    from coverslip.kernels.stain_profile import StainNormalizer

STREAM_BATCH = 64


def run_pixel_pass(
    slide: Slide,
    store: SlideStore,
    survey: Survey,
    context: RunContext,
    clock: Clock,
    result: SlideResult,
    normalizer: StainNormalizer | None = None,
) -> bool:
    """Complete every pixel stage the configuration asks for; True if anything was done.

    normalizer   recolours what encoders see and what is kept of the pixels

    Raises UnreadableTile where a native tile is damaged and the configuration says "fail";
    the blocks written so far stay, and a later run goes on behind them.
    """
    with ExitStack() as stages:
        over_tiles = _tile_outputs(store, survey, context, clock, stages, result, normalizer)
        nuclei = _nucleus_output(slide, store, survey, context, clock, stages)
        tissue_map = _tissue_map_output(slide, store, survey, context, clock, stages)
        groups = [
            _Group("tiles", over_tiles, STREAM_BATCH),
            _Group("nuclei", [nuclei] if nuclei else [], 1),
            _Group("tissue map", [tissue_map] if tissue_map else [], 1),
        ]
        outputs = [output for group in groups for output in group.outputs]
        if outputs:
            try:
                _stream(slide, survey, groups, context, clock, result)
            except BaseException:
                for output in outputs:
                    output.abandon()
                raise
            for output in outputs:
                with clock("finishing"):
                    output.finish()
                if isinstance(output, FeatureOutput):
                    result.flags += output.remarks()
    if head := context.nucleus_head:
        found = store.group(f"nuclei/{head.name}")
        result.nuclei = found["centroid"].shape[0]
        sure = {name: found[name][:] for name in head.expected}
        result.flags += remarks(head.name, sure, head.expected)
    return any(not isinstance(output, SampleOutput) for output in outputs)


def _tile_outputs(
    store: SlideStore,
    survey: Survey,
    context: RunContext,
    clock: Clock,
    stages: ExitStack,
    result: SlideResult,
    normalizer: StainNormalizer | None,
) -> list[Output]:
    """The incomplete outputs over the tile grid; the grid itself is stored first."""
    config, grid = context.config, survey.grid
    tiles = f"tiles/{grid.name}"
    parameters: dict[str, Any] = {"grid": grid.parameters()}
    if not store.is_current(tiles, parameters, needs=["tissue"]):
        with clock("tiles"), store.stage(tiles, parameters, needs=["tissue"]) as stage:
            grid.write(stage)
    if not len(grid.boxes):
        return []
    windows = grid.windows()
    outputs: list[Output] = []

    def wanted(name: str, parameters: dict[str, Any]) -> bool:
        return not store.is_current(name, parameters, needs=[tiles])

    quality: dict[str, Any] = {"on_bad_tile": config.on_bad_tile}
    if config.quality and wanted(f"quality/{grid.name}", quality):
        stage = stages.enter_context(store.stage(f"quality/{grid.name}", quality, needs=[tiles]))
        outputs.append(QualityOutput(windows, stage, grid.mpp, clock))
    stain = (
        {"source": normalizer.source.to_dict(), "target": normalizer.target.to_dict()}
        if normalizer
        else None
    )
    pixels: dict[str, Any] = {
        "codec": config.pixels,
        "on_bad_tile": config.on_bad_tile,
        "stain": stain,
    }
    if config.pixels != "none" and wanted(f"pixels/{grid.name}", pixels):
        stage = stages.enter_context(store.stage(f"pixels/{grid.name}", pixels, needs=[tiles]))
        outputs.append(PixelOutput(windows, stage, config.pixels, normalizer, clock))
    for encoder in context.encoders:
        name = f"features/{encoder.name}@{grid.name}"
        recipe: dict[str, Any] = {
            "recipe": encoder.recipe,
            "weights_sha256": encoder.weights_sha256,
            "on_bad_tile": config.on_bad_tile,
            "stain": stain,
        }
        if config.precision != "auto":
            recipe["precision"] = encoder.precision
        if wanted(name, recipe):
            if not config.replace_features:
                require_same_recipe(store, name, recipe)
            stage = stages.enter_context(store.stage(name, recipe, needs=[tiles]))
            outputs.append(FeatureOutput(windows, stage, encoder, config.batch, normalizer, clock))
    if not (config.quality or config.encoder or config.pixels != "none"):
        return []
    folder = context.output / "report" / result.slide
    samples = SampleOutput(windows, folder)
    result.samples = [str(p.relative_to(context.output)) for p in samples.paths]
    if samples.start < len(windows.origins):
        outputs.append(samples)
    return outputs


def require_same_recipe(store: SlideStore, name: str, wanted: Mapping[str, Any]) -> None:
    """Raises RecipeMismatch where the store holds features that another recipe, or other weights
    under the same name, made: they are somebody's result, and never replaced unasked."""
    if name not in store.stages(name):
        return
    held = store.record(name).parameters
    if held["weights_sha256"] != wanted["weights_sha256"]:
        which = f"weights {held['weights_sha256'][:12]}, not {wanted['weights_sha256'][:12]}"
    else:
        old, new = (orjson.loads(orjson.dumps(p["recipe"])) for p in (held, wanted))
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        if not changed:
            return
        which = "; ".join(
            f"{k} {old.get(k, 'default')}, not {new.get(k, 'default')}" for k in changed
        )
    raise RecipeMismatch(
        f"{printable(str(store.path))}: {name} was made with {which}\n"
        "  --replace-features embeds again; another output folder (-o) keeps both"
    )


def _nucleus_output(
    slide: Slide,
    store: SlideStore,
    survey: Survey,
    context: RunContext,
    clock: Clock,
    stages: ExitStack,
) -> NucleusOutput | None:
    head = context.nucleus_head
    if head is None:
        return None
    parameters = nucleus_parameters(head, context.config)
    writers = {
        kind: stages.enter_context(store.stage(name, parameters, needs=["tissue"]))
        for kind in stages_of(head)
        if not store.is_current(name := f"{kind}/{head.name}", parameters, needs=["tissue"])
    }
    if not writers:
        return None
    return NucleusOutput(slide, survey.tissue, writers, head, context.threads, clock)


def _tissue_map_output(
    slide: Slide,
    store: SlideStore,
    survey: Survey,
    context: RunContext,
    clock: Clock,
    stages: ExitStack,
) -> TissueMapOutput | None:
    head = context.tissue_head
    if head is None:
        return None
    name, parameters = f"maps/{head.name}", tissue_map_parameters(head, context.config)
    nuclei = context.nucleus_head
    if nuclei is not None and name in [f"{stage}/{nuclei.name}" for stage in stages_of(nuclei)]:
        raise InvalidConfig(
            f"--nuclei and --tissue-map would both fill {name}\n"
            "  train one of them under another --name"
        )
    if store.is_current(name, parameters, needs=["tissue"]):
        return None
    stage = stages.enter_context(store.stage(name, parameters, needs=["tissue"]))
    return TissueMapOutput(slide, survey.tissue, stage, head, clock)


class _Group(NamedTuple):
    """Outputs over the same windows, so many of which are handed over together."""

    name: str
    outputs: Sequence[Output]
    batch: int


def _stream(
    slide: Slide,
    survey: Survey,
    groups: Sequence[_Group],
    context: RunContext,
    clock: Clock,
    result: SlideResult,
) -> None:
    """Walk the slide; hand each batch to the outputs that still need it.

    All that is read from one level of the pyramid is read together, so that nothing is decoded
    twice. A tissue map from a coarser level than the others goes by itself: its windows, which
    measure millimetres, would hold that much of the finer level in memory.
    """
    scales = _configured_scales(slide, survey, context)
    level = source_for(slide, min(scales["tiles"] + scales["nuclei"], default=(1.0, 1.0))).level
    apart = any(source_for(slide, scale).level != level for scale in scales["tissue map"])
    near = ("tiles", "nuclei") if apart else tuple(scales)
    bad: set[tuple[int, int, int]] = set()
    for names in (near, ("tissue map",) if apart else ()):
        walk = [group for group in groups if group.outputs and group.name in names]
        beside = [scale for name in names for scale in scales[name]]
        if walk:
            _walk(slide, walk, beside, bad, context, clock, result)
    result.bad_tiles = len(bad)
    if bad:
        result.flags.append(
            f"{len(bad)} native tiles could not be decoded and were taken as background"
        )
    result.bottleneck = clock.slowest().replace("waiting for pixels", "reading and decoding")


def _configured_scales(
    slide: Slide, survey: Survey, context: RunContext
) -> dict[str, list[tuple[float, float]]]:
    """By group, level-0 px per px of its windows; none where it is not asked for.

    What is complete already counts as well: a resumed run cuts its pixels from the same source.
    """
    config = context.config
    tiles = config.quality or config.encoder or config.pixels != "none"
    mpp = {"nuclei": context.nucleus_head, "tissue map": context.tissue_head}
    return {
        "tiles": [survey.grid.scale] if tiles and len(survey.grid.boxes) else [],
        **{
            name: [(head.mpp / slide.mpp[0], head.mpp / slide.mpp[1])] if head else []
            for name, head in mpp.items()
        },
    }


def _walk(
    slide: Slide,
    groups: Sequence[_Group],
    beside: Sequence[tuple[float, float]],
    bad: set[tuple[int, int, int]],
    context: RunContext,
    clock: Clock,
    result: SlideResult,
) -> None:
    """One stream over the windows of all groups; native tiles that are `bad` are added."""
    starts = [min(output.start for output in group.outputs) for group in groups]
    requests = [
        group.outputs[0].windows.at(slice(start, None))
        for group, start in zip(groups, starts, strict=True)
    ]
    totals = [len(group.outputs[0].windows.origins) for group in groups]
    counters = StreamCounters()
    busy = any(output.uses_all_processors for group in groups for output in group.outputs)
    batches = stream_windows(
        slide,
        requests,
        batch=[group.batch for group in groups],
        threads=context.threads,
        ahead=0 if busy else 2,
        on_bad_tile="raise" if context.config.on_bad_tile == "fail" else "blank",
        counters=counters,
        beside=beside,
    )
    with closing(batches):  # an exception below ends the stream's threads at once
        while True:
            with clock("waiting for pixels"):
                batch = next(batches, None)
            if batch is None:
                break
            for error in batch.bad:
                if (place := (error.level, error.column, error.row)) not in bad:
                    bad.add(place)
                    context.journal.write("bad tile", slide=result.slide, problem=error.problem)
            group = groups[batch.request]
            batch = dataclasses.replace(batch, index=batch.index + starts[batch.request])
            for output in group.outputs:
                if batch.index[-1] >= output.start:
                    output.take(batch.since(output.start))
            done = int(batch.index[-1]) + 1
            context.observer(result.slide, group.name, done, totals[batch.request])
    context.journal.write(
        "pixel pass", slide=result.slide, seconds=clock.seconds, stream=dataclasses.asdict(counters)
    )
