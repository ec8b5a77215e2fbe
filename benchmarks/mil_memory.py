"""What a bag of many tiles costs each slide-level model: processor time, and memory above the bag.

python benchmarks/mil_memory.py [--tiles 100000] [--models abmil,transmil]

Each model in a process of its own, one thread; the peak is watched every 5 ms.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil
import torch

from coverslip.mil.registry import slide_model, slide_model_names

DIM, OUTPUTS = 1024, 4


def measured(work: Callable[[], object]) -> tuple[float, int]:
    """(processor seconds, most bytes above what the process held before)."""
    process = psutil.Process()
    before, most, done = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.process_time()
    work()
    seconds = time.process_time() - began
    done.set()
    watcher.join()
    return seconds, most[0] - before


def cost(name: str, tiles: int) -> str:
    """A row of the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bag, model = torch.randn(tiles, DIM), slide_model(name, DIM, OUTPUTS)

    def answer() -> None:
        with torch.no_grad():
            model(bag)

    def learn() -> None:
        found, own = model.with_own_loss(bag, 1)
        (found.logits.square().sum() + own).backward()

    model.train()
    model(bag[:9000]).logits.sum().backward()  # what torch loads when it is first used
    model.zero_grad()
    model.eval()
    inference = measured(answer)
    model.train()
    training = measured(learn)
    cells = [
        f"{seconds:.1f} s | {bytes / 2**20:.0f} MB" for seconds, bytes in (inference, training)
    ]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiles", type=int, default=100_000)
    parser.add_argument("--models", default=",".join(slide_model_names()))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(cost(given.one, given.tiles))
        return
    print(f"{given.tiles:,} tiles of {DIM} numbers")
    print("| model | answering | memory | learning | memory |")
    print("|---|---|---|---|---|")
    for name in given.models.split(","):
        command = [sys.executable, __file__, "--one", name, "--tiles", str(given.tiles)]
        print(subprocess.run(command, check=True, text=True, capture_output=True).stdout, end="")


if __name__ == "__main__":
    main()
