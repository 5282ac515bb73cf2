"""What pose video costs: time over the bare SVD UNet, memory by the clip's length, memory of aligning and drawing."""

from __future__ import annotations

import gc
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from bench_kit import alternate, fill, report

if TYPE_CHECKING:
    from collections.abc import Callable

MEGABYTE = 2**20
WIDTH = 64
"""Of the UNet; SVD's is 320. Levels, blocks and heads are SVD's own."""
WINDOW, OVERLAP = 14, 4
LENGTHS = (25, 100, 240)
LONGER = 34
"""Frames of three windows."""
LATENT = (4, 8, 12)
DRAWN, HEIGHT, WIDE = 161, 1024, 576
"""Frames and size of the drawing."""
UNET: dict[str, Any] = {
    "image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": WIDTH, "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 1024, "num_head_channels": 64,
    "num_heads": -1, "use_spatial_transformer": True, "legacy": False, "use_linear_in_transformer": True,
    "num_classes": "sequential", "adm_in_channels": 768, "use_temporal_attention": True, "use_temporal_resblock": True,
    "extra_ff_mix_layer": True, "use_spatial_context": True, "merge_strategy": "learned_with_images",
    "video_kernel_size": [3, 1, 1],
}  # fmt: skip


def measure(steps: int) -> None:
    """Print ratios of time for a frame and step, then peaks of memory."""
    import torch

    model, control = build_model(), build_module()
    hints = torch.rand(max(LENGTHS), LATENT[1] * 8, LATENT[2] * 8, 3)
    kinds = {
        "bare": one_step(model, WINDOW),
        "ControlNeXt": one_step(attach(model, control, hints[:WINDOW]), WINDOW),
        "windows": one_step(windowed(attach(model, control, hints[:LONGER])), LONGER),
    }
    seconds = alternate(steps, kinds)
    bare = [value / WINDOW for value in seconds["bare"]]
    report(f"a frame and step, ControlNeXt / bare, {WINDOW} frames", divide(seconds["ControlNeXt"], bare, WINDOW))
    report(f"a frame and step, ControlNeXt in windows / bare, {LONGER} frames", divide(seconds["windows"], bare, LONGER))
    print(f"evaluations of a frame in these windows / frames: {3 * WINDOW / LONGER:.3f}", flush=True)
    for length in LENGTHS:
        step = one_step(windowed(attach(model, control, hints[:length])), length)
        print(f"{length} frames in windows of {WINDOW}: peak {peak(partial(step, 2.0)):.0f} MB", flush=True)
    drawing = peak(align_and_draw, is_on_device=False)
    result = (DRAWN + 1) * HEIGHT * WIDE * 3 * 4 / MEGABYTE
    print(f"align and draw {DRAWN} frames of {WIDE}x{HEIGHT}: peak {drawing:.0f} MB, of it hints {result:.0f} MB", flush=True)


def divide(seconds: list[float], bare: list[float], frames: int) -> list[float]:
    """Time of a frame over that of the bare UNet."""
    return [value / frames / other for value, other in zip(seconds, bare, strict=True)]


def build_model() -> Any:
    """SVD of small width with random weights."""
    import comfy.model_management
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    config = comfy.supported_models.SVD_img2vid({**UNET, "dtype": comfy.model_management.unet_dtype(model_params=70_000_000)})
    offload = comfy.model_management.unet_offload_device()
    model = fill(config.get_model({}, device=offload))
    return ModelPatcher(model, load_device=comfy.model_management.get_torch_device(), offload_device=offload)


def build_module() -> Any:
    """A ControlNeXt as narrow as the UNet with random weights."""
    import dataclasses

    from nextcontrol.models.controlnext import GENERATIONS, ControlNeXt
    from nextcontrol.nodes.host.controlnext_file import ControlNeXtFile

    config = dataclasses.replace(
        GENERATIONS[2], stem=(16, 16, 32), blocks=((32, 32), (32, 64)), mid=64, out=WIDTH, time_features=64, time_width=128
    )
    module = fill(ControlNeXt(config, device="cpu"))
    return ControlNeXtFile("bench", module.state_dict(), config, ("svd_v2",), None, None)


def attach(model: Any, control: Any, hints: Any) -> Any:
    """The model with the control over all of sampling."""
    from nextcontrol.nodes.host.attach import attach_controlnext

    return attach_controlnext(model, control, hints, 1.0, (0.0, 1.0))


def windowed(model: Any) -> Any:
    """The model with windows."""
    from nextcontrol.nodes.host.windows import attach_windows

    return attach_windows(model, WINDOW, OVERLAP, "average")


def one_step(model: Any, frames: int) -> Callable[[float], Any]:
    """A guided run of one step through the host's sampler, from the given noise level to none."""
    import comfy.samplers
    import torch

    guider = comfy.samplers.CFGGuider(model)
    embedding, image = torch.randn(1, 1, 1024), torch.randn(1, *LATENT)
    numbers = {"motion_bucket_id": 128, "fps": 7, "augmentation_level": 0.02}
    guider.set_conds(
        [[embedding, {**numbers, "concat_latent_image": image}]],
        [[torch.zeros_like(embedding), {**numbers, "concat_latent_image": torch.zeros_like(image)}]],
    )
    guider.set_cfg(3.0)
    noise, sampler = torch.randn(frames, *LATENT), comfy.samplers.sampler_object("euler")

    def step(sigma: float) -> Any:
        levels = torch.tensor([sigma, 0.0])
        return guider.sample(noise, torch.zeros_like(noise), sampler, levels, disable_pbar=True, seed=0)

    return step


def align_and_draw() -> Any:
    """One person with hands and a face through a clip, official fit, over a reference picture."""
    import numpy as np
    import torch
    from nextcontrol.nodes.host.pose_align import Alignment, align_clip
    from nextcontrol.preprocessors.pose_json import to_json
    from nextcontrol.preprocessors.pose_points import to_people

    random = np.random.default_rng(0)
    rest = [random.uniform(0.2, 0.8, (*shape, 3)) for shape in ((1, 18), (1, 2, 21), (1, 68))]
    clip = []
    for _ in range(DRAWN):
        body, hands, face = (part + random.normal(0, 0.01, part.shape) for part in rest)
        clip.append(to_people(body, HEIGHT, WIDE, hands, face))
    options = Alignment("official", "largest", 0, 0.5, 5, "svd_v2")
    return align_clip(to_json(clip[:1]), to_json(clip), (HEIGHT, WIDE), options, torch.rand(1, HEIGHT, WIDE, 3))


def peak(call: Callable[[], Any], is_on_device: bool = True) -> float:
    """Megabytes that a call takes at most over what there was before: of the GPU if it works there, else of the process."""
    import torch

    gc.collect()
    if is_on_device and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / MEGABYTE
    import psutil

    process, seen, is_done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not is_done.is_set():
            seen.append(process.memory_info().rss)
            time.sleep(0.005)

    trim()
    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        is_done.set()
        watcher.join()
    return (max(seen) - before) / MEGABYTE


def trim() -> None:
    """Give memory that was freed back to the system, where that can be asked for."""
    import ctypes
    import sys

    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
