"""Embedding tiles: ours beside the loop the peers write, same network, same weights, one run.

python benchmarks/encoders.py [--tiles 256]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import timm
import torch
from torchvision import transforms

from coverslip.encoders.loading import load_encoder


def peer(tiles: np.ndarray, network: torch.nn.Module, batch: int) -> None:
    """PIL transforms tile by tile, then a batch through the network, as in a plain DataLoader."""
    from PIL import Image

    prepare = transforms.Compose(
        [
            transforms.Resize(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.inference_mode():
        for i in range(0, len(tiles), batch):
            images = torch.stack([prepare(Image.fromarray(t)) for t in tiles[i : i + batch]])
            network(images).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=256)
    count = parser.parse_args().tiles
    tiles = np.random.default_rng(0).integers(0, 256, (count, 256, 256, 3), dtype=np.uint8)
    encoder = load_encoder("efficientnet-lite0", device="cpu")
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    ways: dict[str, Callable[[], object]] = {
        "coverslip, batch 64": lambda: [
            encoder.encode(tiles[i : i + 64]) for i in range(0, count, 64)
        ],
        "timm + PIL transforms, batch 64": lambda: peer(tiles, network, 64),
        "timm + PIL transforms, batch 8": lambda: peer(tiles, network, 8),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(6):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    print(f"{count} tiles of 256 px, {torch.get_num_threads()} threads, median of 5, interleaved")
    print("| way | tiles/s | ours is |")
    print("|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {count / median:.1f} | {median / first:.2f}x |")


if __name__ == "__main__":
    main()
