"""Several controls as one control of the host: each is evaluated by itself, then weighted, masked, limited and summed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from comfy.controlnet import ControlBase
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...models.combine import cap_factor, guess_weight, norm, resolution_weight
from .control_dicts import Control, join_controls
from .ctrlora_control import CtrLoRAControl
from .hints import LATENT_SCALE, Unused
from .layout import Area, Size, parts_of
from .readout import Readout, Spot, group_of
from .schedule import Schedule
from .stack_planes import from_planes, to_planes
from .stack_view import View

DEPTHS = ("input", "output", "middle")
"""The host's kinds of residual: added in the encoder, to the skips of the decoder, after the middle block."""

_counter = itertools.count()


@dataclass(frozen=True)
class Rules:
    """How the controls of a stack become one."""

    is_capped: bool = False
    has_resolution_weights: bool = False
    has_guess_weights: bool = False


@dataclass(eq=False)
class Member:
    """One control of a stack."""

    position: int
    """In the stack, from 1."""
    control: ControlBase
    """With its hint, its weight and its range, and no predecessor."""
    masks: Tensor | None
    """(M, H, W), where it acts."""
    schedule: Schedule


@dataclass(eq=False)
class Call:
    """What one call of the UNet adds, for the readout."""

    view: View
    parts: list[tuple[int, Control]]
    """By position; the lists stay whole, those that the host gets are emptied by it."""
    total: Control


class ControlStack(ControlBase):
    """The members of a stack that are controls of the host, those of other nodes before it as its predecessor."""

    def __init__(self, members: list[Member], rules: Rules, readout: Readout | None) -> None:
        self.members: list[Member] = []
        super().__init__()
        self.members = members
        self.rules = rules
        self.readout = readout
        self.key = f"nextcontrol.control_stack.{next(_counter)}"
        self._masks: dict[tuple[int, Size, torch.device], Tensor] = {}
        self._tiles: dict[int, tuple[Tensor, list[tuple[Tensor, Tensor | None]]]] = {}
        self._unused = {member: Unused() for member in members}

    def __deepcopy__(self, memo: dict[int, Any]) -> ControlStack:
        # The host copies a model's patches deeply, and with them what they are bound to.
        return self

    # What the host calls

    def copy(self) -> ControlStack:
        """A stack with copies of its members."""
        members = [Member(m.position, m.control.copy(), m.masks, m.schedule.copy()) for m in self.members]
        copy = ControlStack(members, self.rules, self.readout)
        own, self.members = self.members, []  # whose hints the copies have already
        try:
            self.copy_to(copy)
        finally:
            self.members = own
        return copy

    @property
    def cond_hint_original(self) -> Tensor | None:
        """The hints and masks of all members as the channels of one picture, for nodes that cut a control's hint into tiles.

        They read (N, C, H, W), cut and resize it, and put the result in its place, of this control or of a copy.
        """
        return None if not self.members else to_planes(self.members)

    @cond_hint_original.setter
    def cond_hint_original(self, planes: Tensor | None) -> None:
        if planes is not None and self.members:
            from_planes(self.members, planes)
            self._masks = {}

    def get_models(self) -> list[ModelPatcher]:
        """The networks to load, each once."""
        models = super().get_models()
        for model in itertools.chain.from_iterable(member.control.get_models() for member in self.members):
            if not any(model is other for other in models):
                models.append(model)
        return models

    def get_extra_hooks(self) -> list[Any]:
        """Hooks that nodes have put on the members."""
        return [*super().get_extra_hooks(), *(hook for m in self.members for hook in m.control.get_extra_hooks())]

    def inference_memory_requirements(self, dtype: torch.dtype) -> float:
        """Of all: what a control asks for is held from the start of a run to its end."""
        own = sum(member.control.inference_memory_requirements(dtype) for member in self.members)
        return super().inference_memory_requirements(dtype) + own

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Start of a run."""
        super().pre_run(model, percent_to_timestep_function)
        for member in self.members:
            member.control.pre_run(model, percent_to_timestep_function)
            member.schedule.begin(percent_to_timestep_function)
            self._unused[member].begin()
        self._masks = {}

    def cleanup(self) -> None:
        """End of a run."""
        super().cleanup()
        for member in self.members:
            self._unused[member].end(*_frames_of(member))
            member.control.cleanup()
        self._masks, self._tiles = {}, {}

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: Mapping[str, Any], batched_number: int, transformer_options: dict[str, Any]
    ) -> Control | None:
        """The controls for one call of the UNet.

        Args:
            x_noisy: (B, C, h, w); B is prompts x batch.
            t: (B,), sigmas.
            cond: The call's conditioning.
            batched_number: Prompts in the batch.
            transformer_options: Of the host; the readout's notes go into it.

        Returns:
            The host's dictionary of residuals, or None where nothing is added.
        """
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        call = (x_noisy, t, cond, batched_number, transformer_options)
        with self._on_tiles(x_noisy) as is_on_tiles:
            return self._control(before, *call, is_on_tiles)

    @contextmanager
    def _on_tiles(self, x_noisy: Tensor) -> Iterator[bool]:
        """The members with the hints and masks of tiles that another node has put into `cond_hint`, one for each row."""
        given, size = self.cond_hint, [side * LATENT_SCALE for side in x_noisy.shape[-2:]]
        if not isinstance(given, Tensor) or [len(given), *given.shape[2:]] != [len(x_noisy), *size]:
            yield False
            return
        kept = [(member.control.cond_hint_original, member.masks) for member in self.members]
        if id(given) not in self._tiles:
            from_planes(self.members, given)
            own = [(member.control.cond_hint_original, member.masks) for member in self.members]
            self._tiles[id(given)] = (given, own)
        try:
            self._set_pictures(self._tiles[id(given)][1], has_row_each=True)
            yield True
        finally:
            self._set_pictures(kept, has_row_each=False)

    def _set_pictures(self, pictures: list[tuple[Tensor, Tensor | None]], has_row_each: bool) -> None:
        for member, (hint, masks) in zip(self.members, pictures, strict=True):
            member.control.cond_hint_original, member.control.cond_hint, member.masks = hint, None, masks
            if isinstance(member.control, CtrLoRAControl):
                member.control.has_row_each = has_row_each
        self._masks = {}

    def _control(
        self,
        before: Control | None,
        x_noisy: Tensor,
        t: Tensor,
        cond: Mapping[str, Any],
        batched_number: int,
        transformer_options: dict[str, Any],
        is_on_tiles: bool,
    ) -> Control | None:
        """As `get_control`, with what the controls before the stack add."""
        size = Size(x_noisy.shape[-2], x_noisy.shape[-1])
        full, areas, _ = parts_of(transformer_options, x_noisy, batched_number, is_scaled=False)
        if is_on_tiles:
            full, areas = size, [Area(0, 0, *size)]
        for member in self.members:
            self._unused[member].note(len(x_noisy) // len(areas), transformer_options, *_frames_of(member))
        factors = self._factors(t)
        active = [member for member in self.members if factors[member]]
        found = self._evaluate(active, x_noisy, t, cond, batched_number, transformer_options)
        view = View(size, full, areas, len(x_noisy), transformer_options)
        parts = [(m, self._weighted(found[m], m, factors[m], view)) for m in active if m in found]
        if not parts:
            return before
        parts = self._limited(parts)
        total = join_controls(functools.reduce(join_controls, (part for _, part in parts)), before)
        if self.readout is not None:
            kept = {depth: list(residuals) for depth, residuals in total.items()}
            for member, _ in parts:
                self.readout.count(member.position)
            transformer_options[self.key] = Call(view, [(m.position, part) for m, part in parts], kept)
        # The host empties the lists that it is given; a member may still hold its own.
        return {depth: list(residuals) for depth, residuals in total.items()}

    # What happens in between

    def _factors(self, t: Tensor) -> dict[Member, float]:
        """Of the curves; ranges are the members' own matter, and without a curve nothing has to leave the device."""
        if all(member.schedule.curve == "constant" for member in self.members):
            return dict.fromkeys(self.members, 1.0)
        sigma = float(t[0])
        return {member: member.schedule.factor(sigma) for member in self.members}

    def _evaluate(self, active: list[Member], *call: Any) -> dict[Member, Control]:
        """What each acting member adds, by itself; CtrLoRAs of one base in one batch."""
        found: dict[Member, Control] = {}
        shared: dict[Any, list[Member]] = {}
        for member in active:
            if isinstance(member.control, CtrLoRAControl):
                shared.setdefault(member.control.base, []).append(member)
            elif (control := member.control.get_control(*call)) is not None:
                found[member] = control
        for members in shared.values():
            results = members[-1].control.evaluate([member.control for member in members], *call)
            for member in members:
                if member.control in results:
                    residuals = results[member.control]
                    found[member] = {"input": [], "middle": residuals[-1:], "output": residuals[:-1]}
        return found

    def _weighted(self, control: Control, member: Member, factor: float, view: View) -> Control:
        """A member's residuals with its curve, its mask and the weights of the levels; as they are where these are 1."""

        def weigh(residual: Tensor | None, depth: str, index: int, count: int) -> Tensor | None:
            if residual is None:
                return None
            weight = factor
            if self.rules.has_resolution_weights:
                weight *= resolution_weight(view.size.height, residual.shape[-2])
            if self.rules.has_guess_weights:
                # The middle is the deepest and comes after the skips; the host takes residuals of the encoder from the end.
                place = count - 1 - index if depth == "input" else index
                weight *= 1.0 if depth == "middle" else guess_weight(place, count + 1)
            if weight != 1:
                residual = residual * weight
            return residual if member.masks is None else residual * self._mask(member, residual, view).to(residual.dtype)

        return {
            depth: [weigh(residual, depth, index, len(residuals)) for index, residual in enumerate(residuals)]
            for depth, residuals in control.items()
        }

    def _limited(self, parts: list[tuple[Member, Control]]) -> list[tuple[Member, Control]]:
        """Under `cap`, the parts shrunk so that each sum has the norm of its largest term at most."""
        if not self.rules.is_capped or len(parts) == 1:
            return parts
        limited: list[tuple[Member, Control]] = [(member, {depth: [] for depth in DEPTHS}) for member, _ in parts]
        for depth in DEPTHS:
            lists = [part.get(depth, []) for _, part in parts]
            for terms in itertools.zip_longest(*lists):
                present = [term for term in terms if term is not None]
                factor = _cap_factor(present) if len(present) > 1 else None
                for (_, part), term in zip(limited, terms, strict=True):
                    part[depth].append(term if term is None or factor is None else term * factor.to(term.dtype))
        return limited

    def _mask(self, member: Member, residual: Tensor, view: View) -> Tensor:
        """(B, 1, h, w) for a residual, or one row for all."""
        key = (member.position, view.full, residual.device)
        if key not in self._masks:
            assert member.masks is not None
            self._masks[key] = view.fit(member.masks.to(residual.device))
        return view.mask_rows(self._masks[key], (residual.shape[-2], residual.shape[-1]))

    # Inside the UNet, for the readout

    def note_encoder(self, h: Tensor, options: dict[str, Any]) -> Tensor:
        """Block patch of the encoder: `h` has its control already."""
        call: Call | None = options.get(self.key)
        if call is not None:
            self._note(call, "input", len(call.total.get("input", [])) - 1 - options["block"][1], h)
        return h

    def note_decoder(self, h: Tensor, skip: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Block patch of the decoder: the skip has its control already, and before the first block `h` the middle one."""
        call: Call | None = options.get(self.key)
        if call is not None:
            block = options["block"][1]
            if block == 0:
                self._note(call, "middle", len(call.total.get("middle", [])) - 1, h)
            self._note(call, "output", len(call.total.get("output", [])) - 1 - block, skip)
        return h, skip

    def _note(self, call: Call, depth: str, index: int, feature: Tensor) -> None:
        """What each member added at one place; the host takes residuals from the end of its lists."""
        assert self.readout is not None
        if index < 0 or (total := call.total[depth][index]) is None or not is_added(total, feature):
            return
        with self.readout.harmless():
            before = feature - total
            for position, part in call.parts:
                residuals = part.get(depth, [])
                if index < len(residuals) and (residual := residuals[index]) is not None:
                    group = "middle" if depth == "middle" else group_of(call.view.areas[0], residual)
                    spot = Spot(group, call.view.full, call.view.areas)
                    self.readout.note(position, spot, residual.to(feature.dtype), before)


def is_added(residual: Tensor, feature: Tensor) -> bool:
    """Whether the host can add a residual to a feature: it leaves it out where another node has shrunk the feature."""
    if residual.ndim != feature.ndim:
        return False
    return all(own in (1, there) for own, there in zip(residual.shape, feature.shape, strict=True))


def _frames_of(member: Member) -> tuple[int, int]:
    """How many hints and masks no one else counts: a CtrLoRA counts its hints itself."""
    hints = 0 if isinstance(member.control, CtrLoRAControl) else len(member.control.cond_hint_original)
    return hints, 0 if member.masks is None else len(member.masks)


def stacks_in(control: ControlBase | None) -> Iterator[ControlStack]:
    """The stacks in a chain of controls."""
    while control is not None:
        if isinstance(control, ControlStack):
            yield control
        control = control.previous_controlnet


def _cap_factor(terms: list[Tensor]) -> Tensor:
    """(N, 1, 1, 1): what the limit leaves of each term of a sum."""
    total = functools.reduce(torch.add, terms)
    rows = max(len(term) for term in terms)
    largest = functools.reduce(torch.maximum, (norm(term.expand(rows, -1, -1, -1)) for term in terms))
    return cap_factor(total, largest)
