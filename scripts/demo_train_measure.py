"""How well the trained demo model does: pictures from captions, and which training picture each is nearest to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from demo_train_autoencoder import on_ground
from demo_train_controls import BASE, CONTROLS, hints_of, parts_of
from demo_train_pictures import SUBJECTS, load_pictures
from provide import say

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

SHEET, CONTROLS_SHEET = "samples.png", "controls.png"
STEPS, CFG = 25, 4.0
COLUMNS = 12
CELLS = 16
"""Side of the grid of mean colours that pictures are compared by."""


def measure(folder: Path, count: int, seed: int) -> None:
    """Draw captions spread over the subjects, write a sheet of the pictures, and say how many are nearest to their own.

    Args:
        folder: With pictures and all three networks.
        count: Of captions.
        seed: Of the noise.
    """
    import torch
    from nextcontrol.nodes.host.demo_model import load_demo_model

    model, clip, vae = load_demo_model(folder)
    pictures, rows = load_pictures(folder)
    chosen = [place for place, row in enumerate(rows) if row["group"] in SUBJECTS]
    truth = on_ground(pictures[chosen])
    places = torch.linspace(0, len(chosen) - 1, min(count, len(chosen))).round().long().tolist()
    captions = [rows[chosen[place]]["caption"] for place in places]
    with torch.inference_mode():
        found = torch.cat([draw(model, clip, vae, caption, seed + place) for place, caption in enumerate(captions)])
        again = vae.decode(vae.encode(truth[places].movedim(1, -1))).movedim(-1, 1)
    ranks = ranks_of(found, truth, places)
    for limit in (1, 5):
        say(f"{sum(rank < limit for rank in ranks)} of {len(ranks)} are among the {limit} nearest of {len(truth)} pictures.")
    errors = (again - truth[places]).square().mean(dim=(1, 2, 3))
    say(f"Autoencoder on the same pictures: {float(-10 * errors.log10().mean()):.2f} dB.")
    write_sheet(found, folder / SHEET)
    say(f"Captions in {folder / SHEET}, row by row: {', '.join(captions)}")


def draw(model: Any, clip: Any, vae: Any, caption: str, seed: int, apply: Callable[..., Any] | None = None) -> Tensor:
    """One picture (1, 3, 128, 128) by the host's nodes; `apply` changes the model and its two prompts."""
    import nodes

    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (caption, ""))
    if apply is not None:
        model, positive, negative = apply(model, positive, negative)
    empty = nodes.EmptyLatentImage().generate(128, 128)[0]
    latent = nodes.KSampler().sample(model, seed, STEPS, CFG, "euler", "normal", positive, negative, empty)[0]
    return nodes.VAEDecode().decode(vae, latent)[0].movedim(-1, 1)


def ranks_of(found: Tensor, truth: Tensor, places: list[int]) -> list[int]:
    """How many training pictures are nearer to each picture than its own, or its own mirrored."""
    import torch
    from torch.nn import functional as F

    side = truth.shape[-1] // CELLS
    small, references = (F.avg_pool2d(pictures, side) for pictures in (found, truth))
    mirrored = references.flip(-1)
    distances = torch.minimum(*(torch.cdist(small.flatten(1), known.flatten(1)) for known in (references, mirrored)))
    return [int((row < row[place]).sum()) for row, place in zip(distances, places, strict=True)]


def measure_controls(folder: Path, count: int, seed: int) -> None:
    """Draw held-out pictures' captions with each control, write a sheet, and say how near the results' own hints come.

    The sheet has a column for each picture: the picture, without control, then hint and result of each control.

    Args:
        folder: With pictures, all three networks and the finished controls.
        count: Of pictures.
        seed: Of the noise.
    """
    import torch
    from nextcontrol.nodes.host.demo_model import load_demo_model

    models = load_demo_model(folder)
    pictures, captions, _ = parts_of(folder, is_held_out=True)
    chosen = torch.linspace(0, len(captions) - 1, min(count, len(captions))).round().long().tolist()
    pictures, captions = pictures[chosen], [captions[place] for place in chosen]
    free = torch.cat([draw(*models, caption, seed) for caption in captions])
    rows = [pictures.movedim(-1, 1), free]
    for title, condition, apply in _controls():
        hints = hints_of(condition, pictures)
        found = torch.cat(
            [
                draw(*models, caption, seed, lambda *parts, hint=hint, apply=apply: apply(*parts, models[2], hint[None]))
                for caption, hint in zip(captions, hints, strict=True)
            ]
        )
        errors = [float((hints_of(condition, part.movedim(1, -1)) - hints).abs().mean()) for part in (found, free)]
        say(f"{title}: error of the result's own hint {errors[0]:.4f}, without control {errors[1]:.4f}.")
        rows += [hints.movedim(-1, 1), found]
    write_sheet(torch.cat(rows), folder / CONTROLS_SHEET, len(captions))


def _controls() -> list[tuple[str, str, Any]]:
    """Title, condition, and a function that puts the control on a model and its two prompts."""
    from nextcontrol.nodes.apply import ApplyControlNeXt
    from nextcontrol.nodes.ctrlora import LoadCtrLoRA, LoadCtrLoRABase
    from nextcontrol.nodes.loaders import LoadControlNeXt

    import nodes

    (base,) = LoadCtrLoRABase.execute(f"{BASE}.safetensors").args

    def with_ctrlora(file: str) -> Any:
        (control,) = LoadCtrLoRA.execute(base, f"{file}.safetensors", 1.0).args

        def apply(model: Any, positive: Any, negative: Any, vae: Any, hint: Tensor) -> tuple[Any, Any, Any]:
            node = nodes.ControlNetApplyAdvanced()
            return (model, *node.apply_controlnet(positive, negative, control, hint, 1.0, 0.0, 1.0, vae=vae))

        return apply

    canny = "demo_controlnext_canny"
    (module,) = LoadControlNeXt.execute(f"{canny}.safetensors", f"{canny}_unet.safetensors", "auto", "auto").args

    def with_controlnext(model: Any, positive: Any, negative: Any, _vae: Any, hint: Tensor) -> tuple[Any, Any, Any]:
        return *ApplyControlNeXt.execute(model, module, hint, 1.0, 0.0, 1.0).args, positive, negative

    found: list[tuple[str, str, Any]] = [(canny, "canny", with_controlnext)]
    for name, control in CONTROLS.items():
        if control.method != "controlnext":
            loras = {name: control.conditions[0]} if control.base else {f"{name}_{kind}": kind for kind in control.conditions}
            found += [(file, condition, with_ctrlora(file)) for file, condition in loras.items()]
    return found


def write_sheet(pictures: Tensor, path: Path, columns: int = COLUMNS) -> None:
    """The pictures in rows."""
    import torch
    from PIL import Image
    from torch.nn import functional as F

    missing = -len(pictures) % columns
    padded = F.pad(pictures, (0, 0, 0, 0, 0, 0, 0, missing), value=1.0)
    grid = padded.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray((grid.clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(path)
