"""CtrLoRA as a control of the host: everything that works with a native ControlNet works with it."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import comfy.latent_formats
import torch
from comfy.controlnet import ControlBase, StrengthType
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...models.adapted import Group
from ...models.foreign import shown
from .control_dicts import Control, add_residuals, join_controls
from .control_patch import PIXELS_PER_PASS
from .ctrlora_hint import LATENT_CHANNELS, GivenLatents, HintLatents, Posterior, to_encoder_range
from .ctrlora_load import CtrLoRABase
from .hints import LATENT_SCALE, Unused, check_image, rows_of, window_of
from .layout import Size
from .managed import ONE_GPU
from .vae_family import is_sdxl_vae

HEADS = 8
"""Of SD1.5's attention, where the model does not say."""


class Row(NamedTuple):
    """One distinct input of the network."""

    member: CtrLoRAControl
    latent: Tensor
    """(1, 4, h, w) of the hint, not yet scaled."""
    time: float
    text: int
    """Row of the call's text."""
    key: tuple[Hashable, ...]
    """Identifies everything that the result depends on; ends with the time and the text's digest."""


class CtrLoRAControl(ControlBase):
    """One condition on a base, with the hint and strength that an Apply node gives it.

    CtrLoRAs of one base that follow each other in a chain are evaluated by the last of them, as one batch. The network never
    sees the noisy latent, so that each distinct (hint, timestep, text) is computed once, whatever the batch.
    """

    def __init__(
        self,
        base: CtrLoRABase,
        condition: ModelPatcher | None,
        lora_strength: float,
        posterior: Posterior,
        identity: Hashable,
        name: str = "",
    ) -> None:
        super().__init__()
        self.base = base
        self.condition = condition
        self.lora_strength = lora_strength
        self.posterior = posterior
        self.identity = identity
        """Identifies the condition's content."""
        self.name = name or base.name
        """For texts."""
        # Makes the host's Apply nodes hand over the VAE.
        self.latent_format = comfy.latent_formats.SD15()
        # Nodes for tiled diffusion put latents of the tiles into `cond_hint`, made as these two say: cells of the latent, from
        # pixels that the VAE is to see in the range of `HintLatents`.
        self.compression_ratio = 1
        self.preprocess_image = to_encoder_range
        self.has_row_each = False
        """There is a hint for each row of a call, of all of its prompts: those of tiles."""
        self._hints: dict[int, tuple[Tensor, HintLatents]] = {}
        self._unused = Unused()
        self._recent: dict[tuple[Hashable, ...], list[Tensor]] = {}
        self._model: Any = None

    # What the host calls

    def copy(self) -> CtrLoRAControl:
        """A control with the same weights and a state of its own."""
        copy = CtrLoRAControl(self.base, self.condition, self.lora_strength, self.posterior, self.identity, self.name)
        self.copy_to(copy)
        return copy

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> CtrLoRAControl:  # noqa: ARG002
        """Refuse the host's wish for a copy on a second GPU.

        Raises:
            ValueError: Always.
        """
        raise ValueError(ONE_GPU.format(self.name))

    def get_models(self) -> list[ModelPatcher]:
        """The networks to load: the base and each condition once, however long the chain."""
        models = super().get_models()
        for own in (self.base.network, self.condition):
            if own is not None and not any(own is model for model in models):
                models.append(own)
        return models

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Start of a run: the last moment before sampling at which a wrong input can be named."""
        super().pre_run(model, percent_to_timestep_function)
        self.check(model)
        self._model = model
        self._recent = {}
        self._unused.begin()
        self.base.cache.start_run()

    def cleanup(self) -> None:
        """End of a run."""
        if self._model is not None:
            self._unused.end(len(self.cond_hint_original))
        super().cleanup()
        self._recent = {}
        # Of the hint itself they stay for the next run.
        self._hints = {key: kept for key, kept in self._hints.items() if kept[0] is self.cond_hint_original}
        self._model = None

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: Mapping[str, Any], batched_number: int, transformer_options: Mapping[str, Any]
    ) -> Control | None:
        """The controls for one call of the UNet.

        Args:
            x_noisy: (B, 4, h, w); B is prompts x batch. Only its size matters.
            t: (B,), sigmas.
            cond: The call's conditioning, with the text (B, L, D).
            batched_number: Prompts in the batch.
            transformer_options: Of the host.

        Returns:
            The host's dictionary of residuals, or None where nothing is added.
        """
        members, previous = self._members()
        before = None
        if previous is not None:
            before = previous.get_control(x_noisy, t, cond, batched_number, transformer_options)
        parts = self.evaluate(members, x_noisy, t, cond, batched_number, transformer_options)
        if not parts:
            return before
        total = functools.reduce(add_residuals, parts.values())
        return join_controls({"input": [], "middle": total[-1:], "output": total[:-1]}, before)  # type: ignore[dict-item]

    def evaluate(
        self,
        members: Sequence[CtrLoRAControl],
        x_noisy: Tensor,
        t: Tensor,
        cond: Mapping[str, Any],
        batched_number: int,
        transformer_options: Mapping[str, Any],
    ) -> dict[CtrLoRAControl, list[Tensor]]:
        """What each of several CtrLoRAs of this base adds, computed as one batch.

        Args:
            members: On this control's base; those that do not act now are left out.
            x_noisy: As in `get_control`, and so the rest.
            t: Sigmas.
            cond: The call's conditioning.
            batched_number: Prompts in the batch.
            transformer_options: Of the host.

        Returns:
            The residuals of each acting member, its strength in them, shallowest first; the last is the middle one.
        """
        times = self._model.model_sampling.timestep(t).float()
        numbers = torch.cat([t[:1].float(), times]).tolist()
        active = [member for member in members if member.strength != 0 and member._is_active(numbers[0])]
        if not active:
            return {}
        size = Size(x_noisy.shape[-2], x_noisy.shape[-1])
        text = cond.get("crossattn_controlnet", cond["c_crossattn"])
        window = window_of(transformer_options)
        digests = _digests(text)
        batch = len(x_noisy) // batched_number
        plans = []
        for member in active:
            tiles = member._tiles(size, len(x_noisy))
            is_each = tiles is not None or member.has_row_each
            if not is_each:
                member._unused.note(batch, transformer_options, len(member.cond_hint_original))
            hints = rows_of(batch, len(member.cond_hint_original), window) * batched_number
            plans.append(member._rows(list(range(len(x_noisy))) if is_each else hints, numbers[1:], digests, size, tiles))
        results = self._evaluate([row for plan in plans for row in plan], text, size, x_noisy.device)
        return {member: member._residuals(plan, results) for member, plan in zip(active, plans, strict=True)}

    # What happens in between

    def _members(self) -> tuple[list[CtrLoRAControl], Any]:
        """This control and those before it on the same base, and what comes before them."""
        members: list[CtrLoRAControl] = [self]
        previous = self.previous_controlnet
        while isinstance(previous, CtrLoRAControl) and previous.base is self.base:
            members.append(previous)
            previous = previous.previous_controlnet
        return members, previous

    def _is_active(self, sigma: float) -> bool:
        return self.timestep_range is None or self.timestep_range[1] <= sigma <= self.timestep_range[0]

    def check(self, model: Any) -> None:
        """Refuse what cannot work, in one sentence.

        Args:
            model: The host's base model that will be sampled.

        Raises:
            ValueError: There is no fitting VAE, the model is of another family, or the hint is malformed.
        """
        if self.vae is None:
            raise ValueError(
                f"'{shown(self.base.name)}' reads the hint through a VAE and none is connected: "
                "use 'Apply ControlNet' and connect its vae."
            )
        if self.vae.latent_channels != LATENT_CHANNELS or getattr(self.vae, "latent_dim", 2) != 2:
            kind = "pictures" if getattr(self.vae, "latent_dim", 2) == 2 else "video"
            raise ValueError(
                f"The VAE has {self.vae.latent_channels} latent channels for {kind} and CtrLoRA needs {LATENT_CHANNELS} for "
                "pictures: connect the VAE of an SD1.5 checkpoint."
            )
        if is_sdxl_vae(self.vae):
            raise ValueError(
                "The VAE is SDXL's, whose latents mean something else to CtrLoRA: connect the VAE of an SD1.5 checkpoint."
            )
        if self.posterior.is_sampled and not hasattr(getattr(self.vae, "first_stage_model", None), "quant_conv"):
            raise ValueError("posterior is 'sample' and this VAE has no posterior to draw from: set it to mode.")
        config = model.model_config.unet_config
        unet = model.diffusion_model
        width = self.base.config.context_width
        if not isinstance(unet, UNetModel) or config.get("use_temporal_attention") or config.get("context_dim") != width:
            made_for = f"text of width {width}{' (SD1.5)' * (width == 768)}"
            raise ValueError(
                f"'{shown(self.base.name)}' is made for {made_for} and the model is of the family "
                f"{type(model.model_config).__name__} (text width {config.get('context_dim')}): load an SD1.5 checkpoint, or "
                "the demo model for a control that was trained on it."
            )
        check_image(self.cond_hint_original.movedim(1, -1), "image")

    def _tiles(self, size: Size, rows: int) -> GivenLatents | None:
        """The latents that another node has made for the tiles of this call, one for each row."""
        given = self.cond_hint
        if not isinstance(given, Tensor) or given.shape != (rows, LATENT_CHANNELS, *size):
            return None
        return GivenLatents(self._model.latent_format.process_out(given.float()))

    def _rows(
        self,
        hints: Sequence[int],
        times: Sequence[float],
        digests: Sequence[bytes],
        size: Size,
        tiles: GivenLatents | None = None,
    ) -> list[Row]:
        """The network's input for each row of the batch."""
        source = tiles or self._encoded()
        source.encode(hints, size)
        first = {digest: index for index, digest in reversed(list(enumerate(digests)))}
        own = (self.identity, self.lora_strength, self._dtype, self._heads)
        return [
            Row(self, source.latent(hint, size), time, first[digest], (*own, source.digest(hint, size), time, digest))
            for hint, time, digest in zip(hints, times, digests, strict=True)
        ]

    def _encoded(self) -> HintLatents:
        """The latents of the hint as it is now: nodes that go on tile by tile put the tile's hint into its place."""
        hint = self.cond_hint_original
        known = self._hints.get(id(hint))
        if known is None or known[1].vae is not self.vae:
            known = self._hints[id(hint)] = (hint, HintLatents(hint.movedim(1, -1), self.vae, self.posterior))  # BCHW -> BHWC
        return known[1]

    @property
    def _dtype(self) -> torch.dtype:
        """What the UNet computes in."""
        return self._model.manual_cast_dtype or self._model.get_dtype()

    @property
    def _heads(self) -> int:
        heads = self._model.model_config.unet_config.get("num_heads", -1)
        return heads if heads > 0 else HEADS

    def _evaluate(
        self, rows: list[Row], text: Tensor, size: Size, device: torch.device
    ) -> dict[tuple[Hashable, ...], list[Tensor]]:
        """The residuals of every distinct row: kept ones, and the rest in one batch."""
        distinct = {row.key: row for row in rows}
        results = {key: self._recent[key] for key in distinct if key in self._recent}
        for key in distinct:
            if key not in results and (kept := self.base.cache.get(key, device)) is not None:
                results[key] = kept
        missing = [row for key, row in distinct.items() if key not in results]
        per_pass = max(1, PIXELS_PER_PASS // (size.height * size.width * LATENT_SCALE**2))
        for start in range(0, len(missing), per_pass):
            part = missing[start : start + per_pass]
            controls = self._run(part, text, device)
            for index, row in enumerate(part):
                results[row.key] = [control[index : index + 1] for control in controls]
                self.base.cache.put(row.key, results[row.key])
        # Prompts that the host evaluates one by one come back at the same level: keep all of its rows, drop other levels'.
        times = {row.time for row in rows}
        self._recent = {key: kept for key, kept in self._recent.items() if key[-2] in times} | results
        return results

    def _run(self, rows: list[Row], text: Tensor, device: torch.device) -> list[Tensor]:
        """One pass of the base over rows of one or several conditions."""
        scale = self._model.latent_format.process_in
        latents = [row.latent.to(device) for row in rows]
        groups = [
            Group(None if member.condition is None else member.condition.model, member.lora_strength, len(list(part)))
            for member, part in itertools.groupby(row.member for row in rows)
        ]
        return self.base.network.model(
            scale(torch.cat(latents)).to(self._dtype),
            torch.tensor([row.time for row in rows], device=device),
            text[[row.text for row in rows]].to(device, self._dtype),
            self._heads,
            groups,
        )

    def _residuals(self, rows: list[Row], results: Mapping[tuple[Hashable, ...], list[Tensor]]) -> list[Tensor]:
        """What this condition adds to each row of the batch, its strength in it."""
        keys = list(dict.fromkeys(row.key for row in rows))
        index = {key: i for i, key in enumerate(keys)}
        order = [index[row.key] for row in rows]
        count = len(results[keys[0]])
        residuals = []
        for i in range(count):
            stacked = torch.cat([results[key][i] for key in keys]) * self._factor(i, count)
            residuals.append(stacked.expand(len(rows), -1, -1, -1) if len(keys) == 1 else stacked[order])
        return residuals

    def _factor(self, index: int, count: int) -> float:
        """Strength of one residual; the last is the middle one. Soft weights fall off towards the shallow, as the host's do."""
        if self.strength_type == StrengthType.LINEAR_UP:
            return self.strength if index == count - 1 else self.strength ** float(count - 1 - index)
        return self.strength


def _digests(text: Tensor) -> list[bytes]:
    """Identifies the content of each row of (B, L, D)."""
    rows = text.contiguous().view(torch.uint8).cpu().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
