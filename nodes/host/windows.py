"""Long clips on the host's model in overlapping windows, around the whole prediction of the sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...models.injection import FAMILY_TITLES
from ...models.windows import Blend, check_windows, window_starts, window_weights
from .unet_structure import family_of

KEY = "nextcontrol.windows"


@dataclass(frozen=True)
class Window:
    """What a window tells the rest of the model, under the host's own name `context_window`."""

    index_list: list[int]
    """Places of its frames in the clip."""
    hint_list: list[int]
    """Places of its hints: the first is always the clip's first, the reference's pose, as the network was trained."""
    total_frames: int
    """Of the clip."""


@dataclass(frozen=True)
class VideoWindows:
    """The wrappers of one model.

    The host's own context windows cut one level deeper, around the network and before guidance. That cannot be made exact:
    guidance that changes over the frames would run over the clip and not over the window, per-frame conditions of SVD are not
    cut, and samplers that look between two steps are refused. This one is around `predict_noise`, whatever guider has it.
    """

    window: int
    overlap: int
    blend: Blend

    def predict_noise(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Wrapper of the guider's `predict_noise`: the denoised clip as the mean of denoised windows.

        The reference averages what one Euler step makes of each window. The step is affine in the denoised prediction, so the
        mean can be taken before it, and other samplers work as well.

        Args:
            executor: The guider's own method, or the next wrapper.
            x: (frames, 4, H, W), noisy.
            timestep: (frames,), the noise level.
            model_options: Of the run.
            seed: Of the run.

        Returns:
            (frames, 4, H, W), denoised.
        """
        options = dict(model_options or {})
        check_context(options)
        frames = len(x)
        if frames <= self.window:
            return executor(x, timestep, options, seed)
        guider, starts = executor.class_obj, window_starts(frames, self.window, self.overlap)
        whole, total, result = guider.conds, x.new_zeros(frames, 1, 1, 1), torch.zeros_like(x)
        try:
            for start, weights in zip(starts, window_weights(starts, self.window, self.blend), strict=True):
                comfy.model_management.throw_exception_if_processing_interrupted()
                span = slice(start, start + self.window)
                guider.conds = {name: cut_prompts(prompts, span, frames) for name, prompts in whole.items()}
                level = timestep[span] if len(timestep) == frames else timestep
                denoised = executor(x[span], level, _with_window(options, span, frames), seed)
                weight = torch.tensor(weights, dtype=x.dtype, device=x.device)[:, None, None, None]
                result[span] += denoised * weight
                total[span] += weight
        finally:
            guider.conds = whole
        return result / total

    def prepare_sampling(self, executor: Any, model: ModelPatcher, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        """Wrapper of the host's `prepare_sampling`: memory is needed for one window, whatever the clip's length."""
        return executor(model, [min(noise_shape[0], self.window), *noise_shape[1:]], *args, **kwargs)


def attach_windows(model: ModelPatcher, window: int, overlap: int, blend: Blend) -> ModelPatcher:
    """Make a model predict long clips window by window.

    Args:
        model: An SVD model, left as it is; windows that it has already are replaced.
        window: Frames in a window.
        overlap: Frames that a window shares with the one before it.
        blend: See `window_weights`.

    Returns:
        A patched clone.

    Raises:
        ValueError: The numbers do not fit, the model is no SVD, or it has the host's context windows.
    """
    check_windows(window, overlap)
    family = family_of(model)
    if family != "svd":
        raise ValueError(
            f"The model is {FAMILY_TITLES[family]} and Video Windows is for SVD, whose batch is a clip: load an SVD checkpoint."
        )
    check_context(model.model_options)
    clone, windows = model.clone(), VideoWindows(window, overlap, blend)
    wrappers: dict[str, Callable[..., Any]] = {
        WrappersMP.PREDICT_NOISE: windows.predict_noise,
        WrappersMP.PREPARE_SAMPLING: windows.prepare_sampling,
    }
    for kind, wrapper in wrappers.items():
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    return clone


def check_context(model_options: Mapping[str, Any]) -> None:
    """Refuse a model with the host's context windows: two cuts of one clip contradict each other.

    Args:
        model_options: Of the model.

    Raises:
        ValueError: It has them.
    """
    if model_options.get("context_handler") is not None:
        raise ValueError(
            "The model has the windows of 'Context Windows' as well as Video Windows: take one of the two nodes out; for a "
            "ControlNeXt on SVD keep Video Windows."
        )


def cut_prompts(prompts: Any, span: slice, frames: int) -> Any:
    """The prompts of one window.

    Args:
        prompts: As the sampler has prepared them for the whole clip, or None.
        span: Frames of the window.
        frames: In the clip; a tensor with as many rows has one for each frame.

    Returns:
        Copies that share their tensors with `prompts`.
    """
    return prompts and [{name: _cut(value, span, frames) for name, value in prompt.items()} for prompt in prompts]


def _cut(value: Any, span: slice, frames: int) -> Any:
    if isinstance(value, Tensor):
        return value[span] if value.ndim > 0 and len(value) == frames else value
    if isinstance(value, dict):  # model_conds
        return {name: _cut_cond(name, cond, span, frames) for name, cond in value.items()}
    return value


def _cut_cond(name: str, cond: Any, span: slice, frames: int) -> Any:
    """A wrapped condition of the host (`comfy.conds`)."""
    inside = getattr(cond, "cond", None)
    if name == "num_video_frames":
        return type(cond)(span.stop - span.start)
    if isinstance(inside, list):
        return type(cond)([_cut(part, span, frames) for part in inside])
    return type(cond)(_cut(inside, span, frames)) if isinstance(inside, Tensor) else cond


def _with_window(model_options: Mapping[str, Any], span: slice, frames: int) -> dict[str, Any]:
    places = list(range(span.start, span.stop))
    options = {**model_options.get("transformer_options", {}), "context_window": Window(places, [0, *places[1:]], frames)}
    return {**model_options, "transformer_options": options}
