"""The pictures of the help pages: what a node is given, and what it makes of it.

    python3 scripts/help_pictures.py [--models FOLDER] [--comfyui PATH]

Nodes whose network is not in FOLDER/annotators keep the picture that they have, if any, and are named.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gallery import DRAWING, PHOTO, ROOT, draw_inside, read

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

POSE = ROOT / "demo" / "astronaut_pose.json"
FOLDER = ROOT / "web" / "docs" / "pictures"
SIDE, GAP, QUALITY = 256, 8, 82
SHRINK, MOVE = 0.55, (60.0, 180.0)
"""How the clip's pose differs from the reference's in the picture of Align Pose: smaller, and further down."""


def main(arguments: list[str]) -> int:
    """Parse, bring up the host's interpreter, and draw in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="ComfyUI's models folder")
    parser.add_argument("--comfyui", type=Path, help="an existing ComfyUI")
    options = parser.parse_args(arguments)
    return draw_inside(__file__, arguments, options, draw)


def draw() -> None:
    """Run every node and write its picture."""
    import torch

    FOLDER.mkdir(exist_ok=True)
    nodes = pack_nodes()
    for node_id, make in pictures().items():
        try:
            with torch.inference_mode():
                pair = make(nodes[node_id])
        except (FileNotFoundError, ImportError) as error:
            print(f"Left as it is: {node_id}. {error}")
            continue
        side_by_side(pair).save(FOLDER / f"{node_id}.jpg", quality=QUALITY, optimize=True)
        print(f"{node_id}: {(FOLDER / node_id).with_suffix('.jpg').stat().st_size / 1000:.0f} kB")


def pack_nodes() -> dict[str, Any]:
    """Our nodes by id, with the model folders registered."""
    import asyncio

    import nextcontrol

    async def collect() -> dict[str, Any]:
        return {node.GET_SCHEMA().node_id: node for node in await (await nextcontrol.comfy_entrypoint()).get_node_list()}

    return asyncio.run(collect())


def pictures() -> Mapping[str, Callable[[Any], tuple[Any, Any]]]:
    """What makes the two halves of each node's picture from the node."""
    return {
        "NextControlCanny": of_photo(low_threshold=100, high_threshold=200),
        "NextControlPalette": of_photo(),
        "NextControlPixel": of_photo(scale=6, colors=12, seed=0),
        "NextControlGrayscale": of_photo(),
        "NextControlColorPrompt": of_photo(lines=read(DRAWING), seed=0),
        "NextControlBlur": of_photo(kernel=55),
        "NextControlJpeg": of_photo(quality=5),
        "NextControlIllusion": of_photo(channel="blue"),
        "NextControlShuffle": of_photo(seed=0),
        "NextControlInpaint": of_photo(shape="brush", seed=0),
        "NextControlOutpaint": of_photo(mode="pad", keep_height=60, keep_width=60),
        "NextControlSoftEdge": of_photo(detector="teed"),
        "NextControlDrawPose": drawn_pose,
        "NextControlAlignPose": aligned_pose,
    }


def of_photo(**inputs: Any) -> Callable[[Any], tuple[Any, Any]]:
    """For a hint node: the photograph, and its hint."""
    return lambda node: (photo(), node.execute(image=photo(), resolution=512, **inputs).result[0])


def drawn_pose(node: Any) -> tuple[Any, Any]:
    """The photograph, and its key points as drawn."""
    hint = node.execute(keypoints=pose(), resolution=512, style="openpose", body=True, hands=True, face=True).result[0]
    return photo(), hint


def aligned_pose(node: Any) -> tuple[Any, Any]:
    """A clip's pose as it is, and over the reference picture when aligned with it."""
    choices = {"person": "largest", "person_index": 0, "smooth": 0.0, "fill_gaps": 0, "style": "svd_v2"}
    size = {"width": 512, "height": 512}
    given, aligned = (
        node.execute(reference=pose(), poses=moved(pose()), mode=mode, image=photo(), **size, **choices).result
        for mode in ("none", "torso")
    )
    return given[0][1:2], aligned[2][1:2]


@cache
def photo() -> Any:
    """(1, 512, 512, 3) in [0, 1]."""
    return read(PHOTO)


def pose() -> Any:
    """The photograph's key points, in OpenPose's JSON shape."""
    return json.loads(POSE.read_text(encoding="utf-8"))


def moved(frames: Any) -> Any:
    """Key points of a smaller person elsewhere; changes and returns what it is given."""
    for frame in frames:
        for person in frame["people"]:
            for points in person.values():
                for place in range(0, len(points or ()), 3):
                    if points[place + 2]:  # the score
                        points[place : place + 2] = [points[place + axis] * SHRINK + MOVE[axis] for axis in (0, 1)]
    return frames


def side_by_side(pair: tuple[Any, Any]) -> Any:
    """Two pictures on white."""
    import numpy as np
    from PIL import Image

    sheet = Image.new("RGB", (2 * SIDE + GAP, SIDE), "white")
    for place, pixels in enumerate(pair):
        picture = Image.fromarray((pixels[0].cpu().numpy() * 255 + 0.5).astype(np.uint8))
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        left, top = place * (SIDE + GAP) + (SIDE - picture.width) // 2, (SIDE - picture.height) // 2
        sheet.paste(picture, (left, top))
    return sheet


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
