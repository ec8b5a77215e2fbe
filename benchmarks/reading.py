"""Reading, storing and embedding tiles: this engine beside the loops its peers run.

    python benchmarks/reading.py [--repeat 5] [--tiles 1500] [--slide FILE ...] [--only WORD]

Peer and engine read the same tiles in turn, `--repeat` times; the table gives medians, and the
ratio of the peer's median to the engine's. The slide is generated (see `pyramid.py`) unless given.
Memory is measured in processes of their own, above what they held when everything was imported.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from comparison import Row
from pyramid import MPP, pyramid

from coverslip.tiling.grid import TileGrid
from coverslip.tiling.stream import TileStream
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide import Slide

TILE = 256


def middle(grid: TileGrid, count: int) -> npt.NDArray[np.int64]:
    """The numbers of `count` tiles in a row of rows around the slide's middle."""
    count = min(count, len(grid))
    return np.arange(count) + (len(grid) - count) // 2


def drain(slide: Slide, grid: TileGrid, indices: npt.NDArray[np.int64], threads: int) -> None:
    for _ in TileStream(slide, grid, indices=indices, threads=threads):
        pass


def openslide_tiles(path: Path, boxes: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.uint8]]:
    """As the peers read: the region at level 0, its alpha dropped, resized where it is larger."""
    import openslide

    with openslide.OpenSlide(path) as slide:
        for x, y, w, h in boxes.tolist():
            image = slide.read_region((x, y), 0, (w, h)).convert("RGB")
            yield np.asarray(image if (w, h) == (TILE, TILE) else image.resize((TILE, TILE)))


def exhaust(tiles: Iterator[Any]) -> None:
    for _ in tiles:
        pass


def reading(path: Path, mpp: float, title: str, tiles: int) -> Row:
    slide = open_slide(path)
    grid = TileGrid.over(slide, tile=TILE, mpp=mpp)
    chosen = middle(grid, tiles)
    boxes = grid.boxes[chosen]
    area = float(np.prod(boxes[:, 2:].astype(float), axis=1).sum()) / 1e6
    return Row(
        f"{title}, {path.name}",
        "Mpx/s",
        area,
        {
            "openslide" + ("" if boxes[0, 2] == TILE else " + PIL resize"): lambda: exhaust(
                openslide_tiles(path, boxes)
            ),
            "coverslip, 1 thread": lambda: drain(slide, grid, chosen, 1),
            "coverslip, 2 threads": lambda: drain(slide, grid, chosen, 2),
        },
    )


def storing(path: Path) -> Row:
    """All tiles of a slide at 0.5 µm/px, pixels kept, from opening the file to a finished store."""
    with open_slide(path) as slide:
        boxes = TileGrid.over(slide, tile=TILE, mpp=0.5).boxes
    return Row(
        f"tiles into the store, {path.name}",
        "tiles/s",
        len(boxes),
        {
            "openslide -> h5py": lambda: append_to_hdf5(path, boxes),
            "coverslip run, JPEG": lambda: run_into_store(path, "jpeg"),
            "coverslip run, lossless": lambda: run_into_store(path, "lossless"),
        },
    )


def append_to_hdf5(path: Path, boxes: npt.NDArray[np.int32]) -> None:
    """CLAM's and TRIDENT's way: chunks of one tile, the data set grown by every tile."""
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tiles.h5"
        for tile, box in zip(openslide_tiles(path, boxes), boxes, strict=True):
            with h5py.File(file, "a") as store:
                for name, row in (("imgs", tile[None]), ("coords", box[None, :2])):
                    if name not in store:
                        shape = row.shape[1:]
                        store.create_dataset(
                            name,
                            (0, *shape),
                            row.dtype,
                            maxshape=(None, *shape),
                            chunks=(1, *shape),
                        )
                    data = store[name]
                    data.resize(len(data) + 1, axis=0)
                    data[-1:] = row


def run_into_store(path: Path, pixels: Any) -> None:
    from coverslip.engine.config import RunConfig
    from coverslip.engine.run import Run

    config = RunConfig(
        mpp=0.5, tile=TILE, tissue=False, quality=False, encoder=(), pixels=pixels, threads=2
    )
    with tempfile.TemporaryDirectory() as folder:
        (result,) = Run.over([path], folder, config).execute(debug=True)
        if result.status != "done":
            raise RuntimeError(f"the run did not finish: {result}")


def embedding(path: Path, tiles: int) -> Row:
    """Features on the CPU: fed by a plain loader, and by the stream."""
    encoder, slide, grid, chosen = embedded_tiles(path, tiles)
    boxes = grid.boxes[chosen]
    stream = TileStream(slide, grid, indices=chosen, threads=2, ahead=0)
    return Row(
        f"features, CPU, {path.name}",
        "tiles/s",
        len(chosen),
        {
            "openslide DataLoader, 2 workers": lambda: exhaust(
                encoder.encode(batch.numpy()) for batch in loader(path, boxes)
            ),
            "coverslip": lambda: exhaust(encoder.encode_stream(b.pixels for b in stream)),
        },
    )


def beside_the_encoder(path: Path, repeat: int) -> Row:
    """What reading adds to the encoder's own time: a batch from memory, a batch from the slide.

    Turn by turn in batches, for the speed of a shared processor drifts by more than the difference.
    """
    turns = 5 * repeat
    encoder, slide, grid, chosen = embedded_tiles(path, 64 * (turns + 1))
    held = [b.pixels.copy() for b in TileStream(slide, grid, indices=chosen[:256])]
    again = itertools.cycle(held)
    stream = iter(TileStream(slide, grid, indices=chosen, threads=2, ahead=0))
    return Row(
        f"features, a batch of 64, {path.name}",
        "tiles/s",
        64,
        {
            "the encoder alone, tiles in memory": lambda: encoder.encode(next(again)),
            "coverslip": lambda: encoder.encode(next(stream).pixels),
        },
        turns,
    )


def command_beside_its_encoders(path: Path, encoders: tuple[str, ...], repeat: int) -> str:
    """What `coverslip features` with several encoders adds to their own time, start to finish.

    The encoders' time is taken inside the same run, batch by batch: the rest is reading, quality,
    writing and what the engine itself needs.
    """
    from coverslip.engine.config import RunConfig
    from coverslip.engine.run import Run

    config = RunConfig(encoder=encoders, device="cpu")
    shares, rates = [], []
    for turn in range(repeat + 1):
        with tempfile.TemporaryDirectory() as folder:
            (result,) = Run.over([path], folder, config).execute(debug=True)
        if result.status != "done":
            raise SystemExit(result.reason)
        if turn:  # the first loads and compiles
            own = sum(s for name, s in result.seconds.items() if name.startswith("encoding"))
            whole = sum(s for name, s in result.seconds.items() if name not in ("opening",))
            shares.append(own / whole)
            rates.append((result.tiles / own, result.tiles / whole))
    alone, together = (statistics.median(r) for r in zip(*rates, strict=True))
    return (
        f"| `coverslip features`, {' and '.join(encoders)}, one pass, {path.name} "
        f"| the encoders alone {alone:.1f}, the command {together:.1f} tiles/s "
        f"| {min(shares):.3f}-{max(shares):.3f} | {statistics.median(shares):.3f}x |"
    )


def embedded_tiles(path: Path, tiles: int) -> tuple[Any, Slide, TileGrid, npt.NDArray[np.int64]]:
    """The encoder, the slide, its grid, and the tiles to embed."""
    from coverslip.encoders.loading import load_encoder

    slide = open_slide(path)
    grid = TileGrid.over(slide, tile=TILE, mpp=0.5)
    return load_encoder("efficientnet-lite0", device="cpu"), slide, grid, middle(grid, tiles)


def loader(path: Path, boxes: npt.NDArray[np.int32]) -> Any:
    """A plain PyTorch loader over OpenSlide, two worker processes."""
    from torch.utils.data import DataLoader, Dataset

    class Tiles(Dataset[npt.NDArray[np.uint8]]):
        def __len__(self) -> int:
            return len(boxes)

        def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
            if not hasattr(self, "slide"):
                import openslide

                self.slide = openslide.OpenSlide(path)  # one for each worker, after the fork
            x, y, w, h = boxes[index].tolist()
            image = self.slide.read_region((x, y), 0, (w, h)).convert("RGB")
            return np.array(image.resize((TILE, TILE)))

    return DataLoader(Tiles(), batch_size=64, num_workers=2)


def memory(path: Path) -> float:
    """MB above the imports for tissue, tiles, quality and stored pixels of a whole slide."""
    child = [sys.executable, __file__, "--memory-of", str(path)]
    run = subprocess.run(child, check=True, capture_output=True, text=True)
    return float(json.loads(run.stdout.splitlines()[-1])["megabytes"])


def measure_memory(path: Path) -> None:
    """In a process of its own: what `memory` reports."""
    import psutil

    from coverslip.engine.config import RunConfig
    from coverslip.engine.run import Run

    config = RunConfig(mpp=0.5, tile=TILE, encoder=(), pixels="jpeg", threads=2)
    with tempfile.TemporaryDirectory() as folder:
        small = pyramid(2048)
        Run.over([small], Path(folder) / "warm", config).execute(debug=True)  # imports, compiles
        before = psutil.Process().memory_info().rss
        (result,) = Run.over([path], Path(folder) / "out", config).execute(debug=True)
    if result.status != "done":
        raise RuntimeError(f"the run did not finish: {result}")
    # not getrusage: its ru_maxrss begins with what the parent held when this process was forked
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    print(json.dumps({"megabytes": (peak - before) / 1e6}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Reading speed beside the peers.")
    parser.add_argument("--repeat", type=int, default=5, help="timed turns; medians are given")
    parser.add_argument("--tiles", type=int, default=1500, help="tiles a reading row takes")
    parser.add_argument("--slide", type=Path, nargs="*", default=[], help="slides besides ours")
    parser.add_argument("--side", type=int, default=40_000, help="px of the generated slide")
    parser.add_argument("--encoders", default="efficientnet-lite0,efficientnet-lite1")
    parser.add_argument("--only", default="", help="rows with this word: reading, store, ...")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        measure_memory(given.memory_of)
        return
    large, medium = pyramid(given.side), pyramid(min(12_288, given.side))
    makers: list[tuple[str, Callable[[], Row]]] = []
    for path in (large, *given.slide):
        with open_slide(path) as slide:
            mpp = slide.mpp[0]
        makers += [
            ("reading", lambda p=path, m=mpp: reading(p, m, "level-0 tiles", given.tiles)),
            (
                "half",
                lambda p=path, m=mpp: reading(p, 2 * m, "tiles at half size", given.tiles // 4),
            ),
            ("exact", lambda p=path: reading(p, 0.5, "tiles at 0.5 µm/px", given.tiles // 4)),
        ][: 2 if mpp == MPP else 3]
    makers += [("store", lambda: storing(medium)), ("features", lambda: embedding(large, 256))]
    makers += [("features", lambda: beside_the_encoder(large, given.repeat))]
    print("| what | way | median (slowest-fastest) | ratio |\n|---|---|---|---|")
    for word, make in makers:
        if given.only in word:
            row = make()
            row.measure(given.repeat)
            print("\n".join(row.lines()), flush=True)
    if given.only in "features":
        names = tuple(given.encoders.split(","))
        print(command_beside_its_encoders(medium, names, min(given.repeat, 3)), flush=True)
    if given.only in "memory":
        for path in (medium, large):
            held = memory(path)
            print(f"| peak memory, {path.name} | coverslip run | {held:,.0f} MB above imports | |")


if __name__ == "__main__":
    main()
