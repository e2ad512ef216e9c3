"""A folder of images that is larger than the memory it is read with.

Writes images of smooth noise, loads them with a cache and, where asked for, from memory, and goes
through one epoch of batches. Prints seconds, and the memory of the process that belongs to no
file: what is mapped from the cache the system can drop at any time.

    python benchmarks/large_folder.py --n 200000 --size 64
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from iresflow.data.folder import load_folder
from iresflow.data.images.store import InMemory, MemoryMapped
from iresflow.training.loop.batches import Batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=2000, help="images")
    parser.add_argument("--size", type=int, default=64, help="pixels, high and wide")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary directory else")
    parser.add_argument("--in-memory", action="store_true", help="also without a cache")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        _report("start")
        if not (folder / "images").exists():
            _write(folder / "images", options.n, options.size)
        _report("images written")
        stores = {
            "decoded": MemoryMapped(folder / "cache"),
            "found": MemoryMapped(folder / "cache"),
        }
        if options.in_memory:
            stores["in memory"] = InMemory()
        for name, store in stores.items():
            dataset = load_folder(folder / "images", options.size, store=store)
            _report(f"{name}: {len(dataset.train)} images to train on")
            batches = Batches(dataset.train, options.batch_size, 0, torch.device("cpu"))
            stream = batches.from_step(0)
            total = 0
            for _ in range(len(dataset.train) // options.batch_size):
                total += int(next(stream).values.sum())
            _report(f"{name}: one epoch of batches, sum of all values {total}")
            del dataset, batches, stream


def _write(folder: Path, count: int, size: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"{number // 1000:04d}"
        if number % 1000 == 0:
            place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        image = coarse.resize((size, size), Image.Resampling.BICUBIC)
        image.save(place / f"{number:06d}.png", compress_level=1)


_START = time.perf_counter()


def _report(what: str) -> None:
    status = Path("/proc/self/status").read_text()
    own, mapped = (
        int(status.split(f"{name}:")[1].split()[0]) / 1024 for name in ("RssAnon", "RssFile")
    )
    print(
        f"{time.perf_counter() - _START:7.1f} s  {own:7.0f} MB own  {mapped:7.0f} MB mapped  "
        f"{what}",
        flush=True,
    )


if __name__ == "__main__":
    main()
