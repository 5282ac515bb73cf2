"""What everything is proven on: the demo model, its pictures in two parts, and a folder that keeps what is done."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from provide import say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

CHUNK = 64
"""Pictures that are encoded or drawn at a time."""


@dataclass(frozen=True)
class Extent:
    """How much is done."""

    steps: int = 300
    """Updates of each training."""
    looks: tuple[float, ...] = (0, 0.1, 0.25, 0.5, 1)
    """When a training is looked at, as parts of it."""
    batch: int = 8
    """Pairs of an update."""
    base_steps: int = 600
    """Updates of what stands in for a control that does not ship."""
    pairs: int = 1000
    """Of a training."""
    pictures: int = 20
    """Held-out ones that are drawn in each measurement."""
    sampling_steps: int = 12
    seeds: int = 2
    """Of trainings, and of the noise that pictures are drawn from."""
    strengths: tuple[float, ...] = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5)
    ranks: tuple[int, ...] = (4, 8, 16, 64)
    few_pairs: tuple[int, ...] = (50, 200, 1000, 1800)
    rounds: int = 12
    """Of the time measurement."""


FULL = Extent()
QUICK = Extent(
    steps=50, looks=(0, 0.3, 1), base_steps=100, pictures=12, sampling_steps=10, seeds=1, strengths=(0, 0.5, 1, 1.5),
    ranks=(4, 64), few_pairs=(50, 1000, 1800), rounds=5,
)  # fmt: skip


class Keeper:
    """Results in files of a folder, each written when it is whole; all depend on `identity` and on settings of their own."""

    def __init__(self, folder: Path, identity: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.identity = folder, identity

    def name(self, kind: str, settings: Any) -> str:
        """Of a result: the kind, and a digest of everything that it depends on."""
        told = json.dumps([self.identity, settings], sort_keys=True)
        return f"{kind}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    def peek(self, kind: str, settings: Any) -> Any:
        """A kept result, or None."""
        path = self.folder / f"{self.name(kind, settings)}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def keep(self, kind: str, settings: Any, compute: Callable[[], Any]) -> Any:
        """A kept result, computed if it is not there: what JSON can hold."""
        if self.peek(kind, settings) is None:
            path = self.folder / f"{self.name(kind, settings)}.json"
            path.with_suffix(".draft").write_text(json.dumps(compute()), encoding="utf-8")
            path.with_suffix(".draft").replace(path)
        return self.peek(kind, settings)

    def tensor(self, kind: str, settings: Any, compute: Callable[[], Tensor]) -> Tensor:
        """The same for a tensor, which comes from the file in any case."""
        from safetensors.torch import load_file, save_file

        path = self.folder / f"{self.name(kind, settings)}.safetensors"
        if not path.is_file():
            save_file({kind: compute().contiguous()}, path.with_suffix(".draft"))
            path.with_suffix(".draft").replace(path)
        return load_file(path)[kind]


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures (N, H, W, 3) in [0, 1], and their captions."""

    pictures: Tensor
    captions: list[str]


@dataclass(eq=False)
class World:
    """The demo model and the data, with everything that is computed once."""

    models: tuple[Any, Any, Any]
    """The host's MODEL, CLIP and VAE."""
    pairs: Part
    """To train on."""
    held_out: Part
    """To measure on."""
    extent: Extent
    keeper: Keeper
    shipped: Path | None = None
    """Folder with trained controls, in folders named as the host's kinds of model files."""
    loaded: dict[str, Any] = field(default_factory=dict)
    """Control networks, by what they were loaded from."""

    def draw(self, condition: str, pictures: Tensor) -> Tensor:
        """Hints of pictures, both (N, H, W, 3)."""
        from demo_train_controls import hints_of

        return hints_of(condition, pictures)

    @cached_property
    def hints(self) -> Mapping[str, Tensor]:
        """Of the held-out pictures, by the type that is measured."""
        from prove_metrics import METRICS

        return {condition: self.draw(condition, self.held_out.pictures) for condition in METRICS}

    @cached_property
    def texts(self) -> tuple[Tensor, Tensor]:
        """(N + 1, L, D), the text of each pair and last the empty one; and (M, L, D) of the held-out pictures."""

        def encode(captions: list[str]) -> Tensor:
            import torch
            from nextcontrol.nodes.host.encoders import HostTexts
            from nextcontrol.nodes.host.unet_structure import unet_config_of

            texts = HostTexts(self.models[1], unet_config_of(self.models[0])["context_dim"])
            return torch.stack([texts.encode(caption)["context"] for caption in captions])

        captions = [*self.pairs.captions, ""]
        return self.keeper.tensor("texts", captions, lambda: encode(captions)), encode(self.held_out.captions)

    def latents(self, condition: str = "") -> Tensor:
        """(2N, 4, h, w), scaled: of all pairs and then of all mirrored, the hints of a type or the pictures themselves."""
        from nextcontrol.nodes.host.encoders import HostPictures

        def compute() -> Tensor:
            import torch

            say(f"encoding {condition or 'pictures'}")
            encoder = HostPictures(self.models[2])
            given = self._mirrored() if not condition else self.pixels(condition).split(CHUNK)
            scale = self.models[0].model.latent_format.scale_factor
            return torch.cat([encoder.encode(_as_floats(part).movedim(-1, 1), bool(condition))[0] * scale for part in given])

        return self._once(f"latents {condition}", lambda: self.keeper.tensor("latents", condition, compute))

    def pixels(self, condition: str) -> Tensor:
        """(2N, H, W, 3), bytes: the hints of all pairs and then of all mirrored."""

        def compute() -> Tensor:
            import torch

            return torch.cat([(self.draw(condition, part) * 255).round().byte() for part in self._mirrored()])

        return self._once(f"pixels {condition}", compute)

    def _once(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self.loaded:
            self.loaded[key] = compute()
        return self.loaded[key]

    def _mirrored(self) -> list[Tensor]:
        pictures = self.pairs.pictures
        return [*pictures.split(CHUNK), *(part.flip(2) for part in pictures.split(CHUNK))]


def _as_floats(pictures: Tensor) -> Tensor:
    return pictures if pictures.is_floating_point() else pictures.float() / 255


def load_world(extent: Extent, work: Path, pictures: Path, model: Path) -> World:
    """The demo model and the pictures that its controls are trained on, from their folders; results are kept in `work`."""
    import torch
    from demo_train_controls import parts_of
    from nextcontrol.nodes.host.demo_model import load_demo_model

    held, captions, _ = parts_of(pictures, is_held_out=True)
    places = torch.linspace(0, len(held) - 1, min(extent.pictures, len(held))).round().long().tolist()
    models = load_demo_model(model)
    pairs = Part(*parts_of(pictures)[:2])
    held_out = Part(held[places], [captions[place] for place in places])
    keeper = Keeper(work / "kept", identity(models, pairs, held_out, model))
    return World(models, pairs, held_out, extent, keeper, model)


def identity(models: tuple[Any, Any, Any], pairs: Part, held_out: Part, shipped: Path | None) -> str:
    """A name for the model, the data, the controls that ship and how they are trained."""
    from demo_train_controls import CONTROLS, HINTS, RANK
    from nextcontrol.nodes.host.encoders import digest_of_weights, identity_of

    model, clip, vae = models
    data = {"pairs": pairs.pictures, "held_out": held_out.pictures}
    files = sorted(shipped.glob("*/*.safetensors")) if shipped is not None else []
    controls = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    names = [identity_of(model), identity_of(clip.patcher), digest_of_weights(vae.first_stage_model.state_dict())]
    return " ".join([*names, digest_of_weights(data), *held_out.captions, *controls, repr((CONTROLS, HINTS, RANK))])
