"""A node that turns the latents of long clips into pictures."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host.video_decode import decode_video
from .sockets import FROM_SVD, VIDEO, schema


class DecodeVideo(io.ComfyNode):
    """`LATENT` of a clip to `IMAGE`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlDecodeVideo",
            display_name="Decode Video",
            category=VIDEO,
            description="Decode an SVD clip of any length in chunks that fade into each other: memory is that of one chunk and "
            "of the result, and there are no seams. VAE Decode is as good where the whole clip fits into memory.",
            search_aliases=["vae decode", "chunked decode", "svd", "pose video", "stable video diffusion"],
            inputs=[
                io.Latent.Input("samples", tooltip="Of an SVD clip, from a sampler."),
                io.Vae.Input("vae", tooltip=FROM_SVD),
                io.Int.Input(
                    "frames",
                    default=14,
                    min=2,
                    max=1024,
                    tooltip="Frames in a chunk; fewer are taken where memory is short. The peak grows with it.",
                ),
                io.Int.Input(
                    "overlap",
                    default=4,
                    min=1,
                    max=1023,
                    tooltip="Frames that two chunks share and fade across, less than frames. They are decoded twice.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="The frames, for Create Video.")],
        )

    @classmethod
    def execute(cls, samples: Any, vae: Any, frames: int, overlap: int) -> io.NodeOutput:
        return io.NodeOutput(decode_video(vae, samples["samples"], frames, overlap))
