"""How well the trained demo model does: pictures from captions, and which training picture each is nearest to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from demo_train_autoencoder import on_ground
from demo_train_pictures import SUBJECTS, load_pictures
from provide import say

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SHEET = "samples.png"
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


def draw(model: Any, clip: Any, vae: Any, caption: str, seed: int) -> Tensor:
    """One picture (1, 3, 128, 128) by the host's nodes."""
    import nodes

    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (caption, ""))
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


def write_sheet(pictures: Tensor, path: Path) -> None:
    """The pictures in rows of twelve."""
    import torch
    from PIL import Image
    from torch.nn import functional as F

    missing = -len(pictures) % COLUMNS
    padded = F.pad(pictures, (0, 0, 0, 0, 0, 0, 0, missing), value=1.0)
    grid = padded.unflatten(0, (-1, COLUMNS)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray((grid.clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(path)
