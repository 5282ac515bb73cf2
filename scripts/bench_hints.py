"""What hints without weights cost: frames per second, canny beside plain OpenCV, memory for a long clip."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_kit import UNCOUNTED, report, timed

if TYPE_CHECKING:
    from collections.abc import Callable

SIDE = 512
FRAMES, LONG = 64, 300
PHOTO = Path(__file__).resolve().parents[1] / "demo" / "astronaut.png"
MEGABYTE = 1 << 20


def measure(steps: int) -> None:
    """All three, at 512x512; `steps` rounds of each."""
    from nextcontrol.preprocessors.table import PREPROCESSORS

    types = {name: row.make for name, row in PREPROCESSORS.items() if not row.task}
    clip = moving_clip(FRAMES)
    compare_canny(clip, steps)
    measure_speed(types, clip, steps)
    del clip
    measure_memory(types)


def moving_clip(count: int) -> Any:
    """(count, 512, 512, 3): a photograph that wanders."""
    import numpy as np
    import torch
    from PIL import Image

    photo = torch.from_numpy(np.asarray(Image.open(PHOTO).convert("RGB")).copy()).float() / 255
    clip = torch.empty(count, SIDE, SIDE, 3)
    for index, frame in enumerate(clip):
        frame.copy_(photo.roll(3 * index, 1))
    return clip


def compare_canny(clip: Any, steps: int) -> None:
    """Our canny over OpenCV's, alone on bytes and in a plain loop that takes and gives floats as ours does."""
    import cv2
    import numpy as np
    import torch
    from nextcontrol.preprocessors.canny import canny

    pictures = [np.rint(frame.numpy() * 255).astype(np.uint8) for frame in clip]

    def alone(_: float) -> None:
        for picture in pictures:
            cv2.Canny(picture, 100, 200)

    def plain(_: float) -> None:
        hints = []
        for frame in clip:
            edges = cv2.Canny((frame.numpy() * 255).astype(np.uint8), 100, 200)
            hints.append(cv2.cvtColor(edges, cv2.COLOR_GRAY2RGB).astype(np.float32) / 255)
        torch.from_numpy(np.stack(hints))

    kinds = {"ours": lambda _: canny(clip, SIDE), "alone": alone, "plain": plain}
    seconds = {name: [timed(kind, 0.0)] for name, kind in kinds.items()}
    for _ in range(steps):
        for name, kind in kinds.items():
            seconds[name].append(timed(kind, 0.0))
    for title, other in (
        ("canny, floats to floats, over a plain loop (NumPy to bytes, cv2.Canny, to RGB, NumPy to floats, stack)", "plain"),
        ("canny, floats to floats, over cv2.Canny alone (bytes to one channel of bytes, nothing kept)", "alone"),
    ):
        report(title, [a / b for a, b in zip(seconds["ours"][UNCOUNTED:], seconds[other][UNCOUNTED:], strict=True)])


def measure_speed(types: dict[str, Callable[..., Any]], clip: Any, steps: int) -> None:
    """Frames per second of each type: the median, and the range."""
    from nextcontrol.nodes.host.hint_output import make_hints

    print(f"frames per second, {FRAMES} frames of {SIDE}x{SIDE}:")
    for name, make in types.items():

        def step(_: float, make: Callable[..., Any] = make) -> Any:
            return make_hints(clip, lambda frames: make(frames, SIDE))

        seconds = [timed(step, 0.0) for _ in range(steps)]
        speeds = [FRAMES / value for value in seconds]
        print(f"  {name}: {statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})", flush=True)


def measure_memory(types: dict[str, Callable[..., Any]]) -> None:
    """Peak of the resident memory while a node makes hints for a long clip, over what it was before the clip was there."""
    from nextcontrol.nodes.host.hint_output import make_hints

    start = resident("VmRSS")
    clip = moving_clip(LONG)
    size = clip.numel() * clip.element_size() // MEGABYTE
    print(f"peak memory for {LONG} frames of {SIDE}x{SIDE}, over input + output ({2 * size} MB):")
    for name, make in types.items():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        make_hints(clip, lambda frames, make=make: make(frames, SIDE))
        print(f"  {name}: {resident('VmHWM') - start - 2 * size:+d} MB", flush=True)


def resident(entry: str) -> int:
    """Megabytes of this process's memory, from Linux."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(entry))) // 1024
