"""One pass over a slide's pixels, feeding every output that is not complete yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import orjson

from coverslip.engine.clock import Clock
from coverslip.engine.nucleus_output import NucleusOutput, nucleus_parameters
from coverslip.engine.outputs import (
    FeatureOutput,
    Output,
    PixelOutput,
    QualityOutput,
    SampleOutput,
)
from coverslip.engine.result import SlideResult
from coverslip.engine.survey import Survey
from coverslip.errors import RecipeMismatch, printable
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
        outputs: list[Output] = [*over_tiles, *([nuclei] if nuclei else [])]
        if outputs:
            try:
                _stream(slide, over_tiles, nuclei, context, clock, result)
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
        result.nuclei = store.group(f"nuclei/{head.name}")["centroid"].shape[0]
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
    name = f"nuclei/{head.name}"
    parameters = nucleus_parameters(head, context.config)
    if store.is_current(name, parameters, needs=["tissue"]):
        return None
    stage = stages.enter_context(store.stage(name, parameters, needs=["tissue"]))
    return NucleusOutput(slide, survey.tissue, stage, head, context.threads, clock)


def _stream(
    slide: Slide,
    over_tiles: Sequence[Output],
    nuclei: NucleusOutput | None,
    context: RunContext,
    clock: Clock,
    result: SlideResult,
) -> None:
    """Walk the slide once; hand each batch to the outputs that still need it."""
    groups: list[Sequence[Output]] = [g for g in (over_tiles, [nuclei] if nuclei else []) if g]
    starts = [min(output.start for output in group) for group in groups]
    requests = [
        group[0].windows.at(slice(start, None)) for group, start in zip(groups, starts, strict=True)
    ]
    totals = [len(group[0].windows.origins) for group in groups]
    labels = ["tiles" if group is over_tiles else "nuclei" for group in groups]
    counters = StreamCounters()
    bad: set[tuple[int, int, int]] = set()
    batches = stream_windows(
        slide,
        requests,
        batch=[STREAM_BATCH if group is over_tiles else 1 for group in groups],
        threads=context.threads,
        ahead=0 if any(output.uses_all_processors for output in over_tiles) else 2,
        on_bad_tile="raise" if context.config.on_bad_tile == "fail" else "blank",
        counters=counters,
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
            batch = dataclasses.replace(batch, index=batch.index + starts[batch.request])
            for output in groups[batch.request]:
                if batch.index[-1] >= output.start:
                    output.take(batch.since(output.start))
            done = int(batch.index[-1]) + 1
            context.observer(result.slide, labels[batch.request], done, totals[batch.request])
    result.bad_tiles = len(bad)
    if bad:
        result.flags.append(
            f"{len(bad)} native tiles could not be decoded and were taken as background"
        )
    context.journal.write(
        "pixel pass", slide=result.slide, seconds=clock.seconds, stream=dataclasses.asdict(counters)
    )
    result.bottleneck = clock.slowest().replace("waiting for pixels", "reading and decoding")
