"""One ControlNeXt on one model: what is worked out before the UNet runs, and what is added inside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn import functional as F

from ...models.controlnext import ControlNeXt, HintFeatures
from ...models.injection import Injection, Uncond, match_statistics, standardize
from .hints import LATENT_SCALE, Unused, fit_hint, fit_mask, rows_of, window_of
from .layout import Area, Size, parts_of
from .prompt_names import PromptNames
from .schedule import Schedule
from .stack_sites import Seat
from .unet_structure import Place

FEATURE_SHARE = 0.25
"""Part of the free memory that hint features may keep between steps."""
PIXELS_PER_PASS = 8 * 1024 * 1024
"""Pixels of hints that pass the network at once: bounds its activations on long clips."""

_counter = itertools.count()


class Chunk(NamedTuple):
    """The rows of one prompt in the host's batch."""

    area: Area
    multiplier: float
    """0 where nothing is added."""


class Plan(NamedTuple):
    """What one evaluation of the UNet adds, worked out before it starts."""

    control: Tensor
    """(M, C, h, w), one for each distinct (hint, timestep)."""
    rows: list[int]
    """Index into `control` for each row of the batch."""
    masks: Tensor | None
    """(M, 1, H, W) over the whole latent."""
    mask_rows: list[int]
    """Index into `masks` for each row of the batch."""
    chunks: list[Chunk]
    size: Size
    """Of the whole latent."""


@dataclass(eq=False)
class ControlNeXtPatch:
    """One control on one model: what the user asked for, and what is kept during a run.

    The host copies a model's options deeply when it clones the model. A patch is shared by the clones instead: what the user
    asked for never changes, and what is kept is keyed by all that it depends on and dropped at both ends of each run.
    """

    network: ControlNeXt
    injection: Injection
    place: Place
    frames: Tensor
    """(N, H, W, 3), the hints."""
    masks: Tensor | None
    """(M, H, W)."""
    strength: float
    schedule: Schedule
    uncond: Uncond
    scale: float | None
    """The learned scale of the file."""
    names: PromptNames
    """Of the model."""
    seat: Seat | None = None
    """Among the controls of a stack, where their sum is limited or their shares are noted."""
    key: str = field(default_factory=lambda: f"nextcontrol.controlnext.{next(_counter)}")
    _features: dict[int, HintFeatures] = field(default_factory=dict)
    _controls: dict[tuple[int, float], Tensor] = field(default_factory=dict)
    _masks: Tensor | None = None
    _kept_for: tuple[Size, torch.device, torch.dtype] | None = None
    _unused: Unused = field(default_factory=Unused)

    def __deepcopy__(self, memo: dict[int, Any]) -> ControlNeXtPatch:
        return self

    # What the host calls

    def on_pre_run(self, model: ModelPatcher) -> None:
        """Start of a run."""
        self.set_range(model)
        self.forget()
        self._unused.begin()

    def on_cleanup(self, _model: ModelPatcher) -> None:
        """End of a run, also of a cancelled one."""
        self.forget()
        self._unused.end(len(self.frames), 0 if self.masks is None else len(self.masks))

    def diffusion_model(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Wrapper of the UNet: work out the control and hand it to the block patch through `transformer_options`."""
        options = dict(transformer_options or {})
        plan = self.plan(x, timesteps, options)
        if plan is not None:
            options[self.key] = plan
        return executor(x, timesteps, context, y, control, options, **kwargs)

    def input_patch(self, h: Tensor, options: dict[str, Any]) -> Tensor:
        """Block patch of the encoder."""
        if self.key not in options or options["block"] != self.place.block:
            return h
        plan: Plan = options[self.key]
        if self.seat is None:
            return self.add(h, plan)
        feature = self.seat.feature(h, options)
        areas = [chunk.area for chunk in plan.chunks]
        return self.seat.settle(feature, self.add(feature, plan), plan.size, areas, options)

    def output_patch(self, h: Tensor, skip: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Block patch of the decoder; the skip connection is left alone."""
        return self.input_patch(h, options), skip

    # Before the UNet runs

    def set_range(self, model: ModelPatcher) -> None:
        """Translate percents with the schedule of the model that runs, which a later node may have changed."""
        self.schedule.begin(model.get_model_object("model_sampling").percent_to_sigma)

    def forget(self) -> None:
        """Drop every kept tensor."""
        self._features, self._controls = {}, {}
        self._masks = self._kept_for = None

    def plan(self, x: Tensor, timesteps: Tensor, options: Mapping[str, Any]) -> Plan | None:
        """Everything that one evaluation needs.

        Args:
            x: (B, C, H, W), the UNet's input; B is prompts x batch.
            timesteps: (B,), the model's own index.
            options: The host's `transformer_options`.

        Returns:
            None where nothing is added: outside the percent range, or for unconditional rows only.
        """
        prompts = options.get("cond_or_uncond") or [0]
        multipliers = self._multipliers(options, prompts)
        if not any(multipliers):
            return None
        sigmas = options.get("sigmas", timesteps[:0])
        # Python needs the numbers: one transfer for all of them.
        numbers = torch.cat([timesteps.float(), sigmas[:1].float().to(timesteps.device)]).tolist()
        times = numbers[: len(timesteps)]
        factor = self.schedule.factor(numbers[-1]) if len(sigmas) else 1.0
        if factor == 0:
            return None
        size, areas, order = parts_of(options, x, len(prompts), is_scaled=True)
        multipliers = [multipliers[prompt] for prompt in order]
        self._keep_for(size, x.device, x.dtype)
        batch, window = x.shape[0] // len(areas), options.get("context_window")
        places = window_of(options)
        self._unused.note(batch, options, len(self.frames), 0 if self.masks is None else len(self.masks))
        hints = rows_of(batch, len(self.frames), getattr(window, "hint_list", places)) * len(areas)
        needed = list(zip(hints, times, strict=True))
        distinct = {row: index for index, row in enumerate(dict.fromkeys(needed))}
        return Plan(
            control=self._control(list(distinct)),
            rows=[distinct[row] for row in needed],
            masks=self._fitted_masks(),
            mask_rows=rows_of(batch, 1 if self.masks is None else len(self.masks), places) * len(areas),
            chunks=[Chunk(area, multiplier * factor) for area, multiplier in zip(areas, multipliers, strict=True)],
            size=size,
        )

    def _multipliers(self, options: Mapping[str, Any], prompts: Sequence[int]) -> list[float]:
        """The strength for each prompt, by whether it is a negative one."""
        positive, negative = (
            self.strength * self.injection.multiplier(self.scale, is_uncond, self.uncond) for is_uncond in (False, True)
        )
        if positive == negative:
            return [positive] * len(prompts)
        return [negative if is_negative else positive for is_negative in self.names.negatives(options, prompts)]

    def _keep_for(self, size: Size, device: torch.device, dtype: torch.dtype) -> None:
        if self._kept_for != (size, device, dtype):
            self.forget()
            self._kept_for = (size, device, dtype)

    def _control(self, rows: list[tuple[int, float]]) -> Tensor:
        """(len(rows), C, h, w) for each (hint, timestep): kept for the next evaluation, which may share some of them."""
        assert self._kept_for is not None
        size, device, _ = self._kept_for
        missing = [row for row in rows if row not in self._controls]
        if missing:
            # Those of other timesteps, and of windows of a long clip that lie behind.
            self._controls = {row: control for row, control in self._controls.items() if row in rows}
        per_pass = max(1, PIXELS_PER_PASS // (size.height * size.width * LATENT_SCALE**2))
        for start in range(0, len(missing), per_pass):
            part = missing[start : start + per_pass]
            features = self._read([hint for hint, _ in part])
            control = self.network.control_at(features, torch.tensor([time for _, time in part], device=device))
            self._controls.update(zip(part, control.split(1), strict=True))
        return _join([self._controls[row] for row in rows])

    def _read(self, hints: list[int]) -> HintFeatures:
        """What the network reads from each hint before the timestep matters; kept for the run while memory allows."""
        assert self._kept_for is not None
        size, device, dtype = self._kept_for
        missing = [hint for hint in dict.fromkeys(hints) if hint not in self._features]
        known = self._features
        if missing:
            read = self.network.read_hint(fit_hint(self.frames[missing].float().to(device), size).to(dtype))
            fresh = map(HintFeatures, read.shortcut.split(1), read.hidden.split(1))
            known = {**known, **dict(zip(missing, fresh, strict=True))}
            weight = sum(tensor.nbytes for pair in known.values() for tensor in pair)
            if weight <= FEATURE_SHARE * comfy.model_management.get_free_memory(device):
                self._features = known
        return HintFeatures(_join([known[hint].shortcut for hint in hints]), _join([known[hint].hidden for hint in hints]))

    def _fitted_masks(self) -> Tensor | None:
        if self.masks is not None and self._masks is None:
            assert self._kept_for is not None
            size, device, _ = self._kept_for
            self._masks = fit_mask(self.masks.to(device), size)
        return self._masks

    # Inside the UNet

    def add(self, h: Tensor, plan: Plan) -> Tensor:
        """The feature with the control added, as a new tensor: the host keeps the given one as a skip connection."""
        if len(set(plan.chunks)) == 1:
            return h + self._residual(h, plan, plan.chunks[0], slice(None))
        batch = len(plan.rows) // len(plan.chunks)
        spans = [slice(i * batch, (i + 1) * batch) for i in range(len(plan.chunks))]
        return torch.cat(
            [
                h[span] + self._residual(h[span], plan, chunk, span) if chunk.multiplier else h[span]
                for chunk, span in zip(plan.chunks, spans, strict=True)
            ]
        )

    def _residual(self, h: Tensor, plan: Plan, chunk: Chunk, span: slice) -> Tensor:
        size = (h.shape[-2], h.shape[-1])
        standard = standardize(chunk.area.crop(plan.control, plan.size), size, self.injection)
        residual = match_statistics(_take(standard, plan.rows[span]), h, self.injection) * chunk.multiplier
        if plan.masks is not None:
            masks = F.adaptive_avg_pool2d(chunk.area.crop(plan.masks, plan.size), size)
            residual = residual * _take(masks, plan.mask_rows[span])
        return residual.to(h.dtype)


def _join(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _take(x: Tensor, rows: list[int]) -> Tensor:
    """Rows of `x`, or `x` itself to broadcast where it has only one."""
    return x if len(x) == 1 else x[rows]
