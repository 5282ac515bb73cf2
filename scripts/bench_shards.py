"""Memory in use over one pass through 200,000 small encoded pairs in tar shards, pairs per second, and bytes of a real pair.

Rates are in seconds of the processor: what else runs on the machine does not count, and waiting for the disk neither.

The pairs are written into a temporary folder first (about 1 GB). Needs webdataset in the host's Python.
NEXTCONTROL_BENCH_PAIRS=N takes another number of pairs.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

PAIRS, PER_SHARD, BUFFER, BATCH = 200_000, 1000, 2000, 100
LINES = 20
"""Rows of the table."""


def measure(steps: int) -> None:
    """The curve of memory, and the sizes. `steps` repeats the measurement of sizes."""
    import torch

    torch.set_num_threads(1)
    for line in sizes(max(1, steps // 12)):
        print(line, flush=True)
    count = int(os.environ.get("NEXTCONTROL_BENCH_PAIRS", PAIRS))
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        size = write_encoded(Path(folder), count, PER_SHARD)
        rate = f"{count / (time.process_time() - start):,.0f} pairs in a second of one core"
        print(f"written: {count:,} pairs in {-(-count // PER_SHARD)} shards, {size / 1e9:.2f} GB, {rate}", flush=True)
        _pass(Path(folder), count)


def _pass(folder: Path, count: int) -> None:
    source = open_source(folder, count // BATCH)
    steps = source.order.total // BATCH
    every = max(1, steps // LINES)
    print(
        f"one pass, batches of {BATCH}, buffers of {BUFFER}; resident memory before it: {resident_megabytes():.0f} MB",
        flush=True,
    )
    start, held = time.process_time(), []
    for step in range(steps):
        source.batches(step)
        held.append(resident_megabytes())
        if (step + 1) % every == 0:
            pairs, seconds = (step + 1) * BATCH, time.process_time() - start
            print(f"  {pairs:9,} pairs: {held[-1]:7.1f} MB, {pairs / seconds:7,.0f} pairs in a second of one core", flush=True)
    warm = held[len(held) // 10 :]
    print(f"after the first tenth of the pass: {min(warm):.1f} to {max(warm):.1f} MB", flush=True)


def open_source(folder: Path, steps: int) -> Any:
    """A source of the pairs that `write_encoded` wrote."""
    import torch
    from nextcontrol.training.config import TrainConfig
    from nextcontrol.training.objective import DiscreteObjective, sd_alphas
    from nextcontrol.training.shard_index import load_index
    from nextcontrol.training.shards import Shards, ShardSource

    index = load_index(folder).check_files(folder, is_skipping=False)
    shards = Shards(folder, index, 0.18215, {"context": torch.zeros(4, 16)}, has_flip=False, prompt_dropout=0.3)
    config = TrainConfig(steps=max(1, steps), batch_size=BATCH)
    return ShardSource(shards, config, DiscreteObjective(sd_alphas()), BUFFER)


def write_encoded(folder: Path, count: int, per_shard: int, context: tuple[int, int] = (4, 16)) -> int:
    """Encoded shards of random pairs with latents of 8x8, by the writer that `--precompute` uses.

    Returns:
        Bytes of them all.
    """
    from nextcontrol.training.encoded_pair import Checksum
    from nextcontrol.training.shard_index import Entry, ShardIndex
    from nextcontrol.training.tar_writer import write_samples

    entries = []
    for number, start in enumerate(range(0, count, per_shard)):
        name = f"shard-{number:06d}.tar"
        checksum = Checksum()
        samples = checksum.of(_random_samples(start, min(count, start + per_shard), context), name)
        written = write_samples(folder / name, samples)
        entries.append(Entry(name, "", written.count, written.size, written.digest, checksum=str(checksum)))
    ShardIndex({}, tuple(entries)).write(folder)
    return sum(entry.size for entry in entries)


def _random_samples(start: int, end: int, context: tuple[int, int]) -> Iterator[dict[str, Any]]:
    import torch
    from nextcontrol.training.encoded_pair import seal
    from safetensors.torch import save

    generator = torch.Generator().manual_seed(start)
    parts = [f"{role}.{part}" for role in ("target", "hint") for part in ("mean", "deviation")]
    latents = torch.randn(end - start, len(parts), 4, 8, 8, generator=generator).half()
    texts = torch.randn(end - start, *context, generator=generator).half()
    for number, (own, text) in enumerate(zip(latents, texts, strict=True), start):
        tensors = dict(zip(parts, own, strict=True)) | {"text.context": text}
        about = {"name": f"{number:07d}", "caption": f"pair {number}"}
        kept = save({name: tensor.clone() for name, tensor in tensors.items()})
        yield seal({"__key__": f"{number:08d}", "safetensors": kept, "json": json.dumps(about).encode()})


def sizes(rounds: int) -> Iterator[str]:
    """Bytes of an SD1.5 pair of 512x512 pixels in a shard, in each form, and the pairs that one process reads in a second.

    Yields:
        Lines of the table. Latents and text are random, the picture of the hint is a canny drawing of a photograph.
    """
    from nextcontrol.training.encoded_pair import EncodedPair, checked
    from nextcontrol.training.tar_files import read_samples
    from nextcontrol.training.tar_writer import write_samples

    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp16", "fp32"):
            for form in ("latent", "pixels"):
                for has_text in (True, False):
                    path, count = Path(folder) / "x.tar", 64
                    written = write_samples(path, _full_samples(count, precision, form, has_text))
                    start = time.process_time()
                    for _ in range(rounds):
                        for sample in read_samples(path):
                            assert not isinstance(sample, ValueError)
                            checked(sample, path.name)
                            EncodedPair(sample, 1.0, 1, {}).hint(0)
                    rate = rounds * count / (time.process_time() - start)
                    title = f"{precision}, hint as {form}, {'with' if has_text else 'without'} text"
                    yield f"{title}: {written.size / count:,.0f} bytes a pair, {rate:,.0f} pairs read in a second of one core"


def _full_samples(count: int, precision: str, form: str, has_text: bool) -> Iterator[dict[str, Any]]:
    import torch
    from nextcontrol.training.encoded_pair import TYPES, seal
    from safetensors.torch import save

    generator = torch.Generator().manual_seed(0)
    hint = _drawing()
    for number in range(count):
        names = [f"{role}.{part}" for role in ("target", "hint") for part in ("mean", "deviation")]
        names = names if form == "latent" else names[:2]
        tensors = {name: torch.randn(4, 64, 64, generator=generator) for name in names}
        if has_text:
            tensors["text.context"] = torch.randn(77, 768, generator=generator)
        about = {"name": f"{number:07d}.png", "caption": "a photograph of a woman in front of a flag, smiling at the camera"}
        kept = save({name: tensor.to(TYPES[precision]) for name, tensor in tensors.items()})
        sample = {"__key__": f"{number:08d}", "safetensors": kept, "json": json.dumps(about).encode()}
        yield seal(sample if form == "latent" else sample | {"hint.png": hint})


def _drawing() -> bytes:
    """A PNG of 512x512: what Canny makes of a photograph."""
    import cv2
    from PIL import Image

    photograph = Path(__file__).resolve().parents[1] / "demo" / "astronaut.png"
    with Image.open(photograph) as picture:
        import numpy as np

        edges = cv2.Canny(np.asarray(picture.convert("L").resize((512, 512))), 100, 200)
    stream = io.BytesIO()
    Image.fromarray(edges).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def resident_megabytes() -> float:
    """Memory that this process has in use now; its peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
