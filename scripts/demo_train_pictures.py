"""The pictures that the demo model is trained on: a 3-D emoji set from npm, with its names as captions.

Source: npm @lobehub/fluent-emoji-3d (Microsoft's Fluent Emoji, MIT) and emojibase-data (names, MIT).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provide import SetupError, say

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PICTURES = "@lobehub/fluent-emoji-3d@1.1.0"
NAMES = "emojibase-data@17.0.0"
RESULT = "pictures.npz"
CAPTIONS = "captions.json"
SIDE = 128
"""Pixels."""
FLAGS, COMPONENTS = 9, 2
"""Groups of the names that are left out altogether."""
GROUPS = {
    0: "smileys",
    1: "people",
    3: "animals and nature",
    4: "food and drink",
    5: "travel and places",
    6: "activities",
    7: "objects",
    8: "symbols",
}  # fmt: skip
SUBJECTS = (0, 3, 4, 5, 6, 7)
"""Groups that the diffusion model learns; the autoencoder learns from all."""
SMALLEST, TURN, BEND = 0.6, 0.35, 0.15
"""How far a picture is warped: its least width and height, radians, and parts of half a side."""


def prepare_pictures(folder: Path) -> Path:
    """Fetch the two packages with the ordinary npm client, and put pictures and names together.

    Args:
        folder: Takes all files.

    Returns:
        The archive: `pictures` (N, 128, 128, 4) bytes, red, green, blue and opacity. `captions.json` lies beside it.

    Raises:
        SetupError: There is no npm, or it cannot fetch a package.
    """
    result = folder / RESULT
    if result.is_file() and (folder / CAPTIONS).is_file():
        return result
    folder.mkdir(parents=True, exist_ok=True)
    pictures, names = (_fetch(package, folder) for package in (PICTURES, NAMES))
    rows = json.loads((names / "en" / "data.json").read_text(encoding="utf-8"))
    files = {_plain(path.stem): path for path in sorted((pictures / "assets").glob("*.webp"))}
    found = [(row, files[_plain(row["hexcode"])]) for row in rows if _is_wanted(row) and _plain(row["hexcode"]) in files]
    captions = [{"caption": row["label"], "tags": row.get("tags", []), "group": row["group"]} for row, _ in found]
    import numpy as np

    draft = folder / f"draft_{RESULT}"
    np.savez(draft, pictures=np.stack([_read(path) for _, path in found]))
    (folder / CAPTIONS).write_text(json.dumps(captions, indent=0), encoding="utf-8")
    draft.replace(result)
    say(f"{len(captions)} captioned pictures, {sum(row['group'] in SUBJECTS for row in captions)} of them subjects.")
    return result


def load_pictures(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """What `prepare_pictures` made: bytes (N, 128, 128, 4), and a caption, tags and group for each."""
    import numpy as np

    with np.load(folder / RESULT) as archive:
        return archive["pictures"], json.loads((folder / CAPTIONS).read_text(encoding="utf-8"))


def warped(pictures: Tensor, seed: int) -> Tensor:
    """Turn each picture, make it narrower and lower, move and bend it, at random: its name then leaves the shape to a control.

    Args:
        pictures: (N, 3, H, W) in [0, 1], on white.
        seed: Of what is random.

    Returns:
        (N, 3, H, W), on white.
    """
    import torch
    from torch.nn import functional as F

    count, draw = len(pictures), torch.Generator().manual_seed(seed)

    def even(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=draw) * 2 - 1

    size = SMALLEST + (1 - SMALLEST) * (even(2) + 1) / 2
    shift, angle = even(2) * (1 - size), even() * TURN
    # From places in the result to those in the picture: back by the shift, turned, and further out where it is made smaller.
    turn = torch.stack([torch.stack([angle.cos(), angle.sin()], 1), torch.stack([-angle.sin(), angle.cos()], 1)], 1)
    back = turn / size[:, :, None]
    places = F.affine_grid(torch.cat([back, -back @ shift[:, :, None]], 2), list(pictures.shape), align_corners=False)
    bends = F.interpolate(even(2, 4, 4) * BEND, pictures.shape[-2:], mode="bicubic", align_corners=True)
    return 1 - F.grid_sample(1 - pictures, places + bends.movedim(1, -1), align_corners=False)


def _is_wanted(row: dict[str, Any]) -> bool:
    return row.get("group", FLAGS) not in {FLAGS, COMPONENTS}


def _plain(code: str) -> str:
    """A code point sequence without the sign that asks for a coloured picture: the two packages differ in it."""
    return code.lower().replace("-fe0f", "")


def _fetch(package: str, folder: Path) -> Path:
    """The unpacked content of an npm package."""
    place = folder / package.strip("@").replace("/", "_")
    if (place / "package").is_dir():
        return place / "package"
    npm = shutil.which("npm")
    if npm is None:
        raise SetupError("There is no npm, which fetches the pictures: install Node.js.")
    command = [npm, "pack", package, "--silent"]
    packed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if packed.returncode:
        raise SetupError(f"npm cannot fetch '{package}' ({packed.stderr.strip()[-200:]}): check the connection.")
    draft = place.with_name(f"draft_{place.name}")
    shutil.rmtree(draft, ignore_errors=True)
    archive = folder / packed.stdout.strip().splitlines()[-1]
    with tarfile.open(archive) as file:
        file.extractall(draft, filter="data")
    draft.rename(place)
    archive.unlink()
    return place / "package"


def _read(path: Path) -> np.ndarray:
    import numpy as np
    from PIL import Image

    with Image.open(path, formats=("WEBP",)) as image:
        return np.asarray(image.convert("RGBa").resize((SIDE, SIDE), Image.Resampling.LANCZOS).convert("RGBA"))
