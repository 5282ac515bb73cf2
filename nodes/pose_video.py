"""Nodes that let a clip of poses animate a picture."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..models.windows import BLENDS
from .host.controlnext_file import check_choice
from .host.video_conditioning import CLIP_PREPROCESS, condition_video
from .host.windows import attach_windows
from .sockets import VIDEO, schema, seed_input


class PoseVideoConditioning(io.ComfyNode):
    """A reference picture and hints to `CONDITIONING` and `LATENT`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlPoseVideoConditioning",
            display_name="Pose Video Conditioning",
            category=VIDEO,
            description="Prompts and an empty latent for an SVD clip that begins with a reference picture, with the numbers "
            "that ControlNeXt for SVD was published with. The clip is as long and as large as its hints.",
            search_aliases=["svd", "img2vid", "image to video", "SVD_img2vid_Conditioning"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="From Image Only Checkpoint Loader, of an SVD checkpoint."),
                io.Image.Input(
                    "init_image",
                    tooltip="The reference picture that is animated; the first of a batch. Cut in the centre to the shape of "
                    "the hints, then resized.",
                ),
                io.Vae.Input("vae", tooltip="From Image Only Checkpoint Loader, of an SVD checkpoint."),
                io.Image.Input(
                    "hints", tooltip="From Align Pose, the reference's pose first: one for each frame, in the clip's size."
                ),
                io.Int.Input(
                    "motion_bucket_id",
                    default=128,
                    min=1,
                    max=1023,
                    tooltip="How much motion there is. The published code uses 128 throughout.",
                ),
                io.Int.Input(
                    "fps",
                    default=7,
                    min=1,
                    max=1024,
                    tooltip="Frames per second of the clip as SVD knows it. 7 is the published 6, as ComfyUI subtracts 1.",
                ),
                io.Float.Input(
                    "augmentation_level",
                    default=0.02,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Noise on the reference picture, as SVD was trained; half as strong as that of ComfyUI's own node, "
                    "as in the published code.",
                ),
                io.Combo.Input(
                    "clip_preprocess",
                    options=list(CLIP_PREPROCESS),
                    default="official",
                    tooltip="How CLIP sees the picture. official squashes the whole picture into a square, as the published "
                    "code does; host cuts a square from its centre.",
                ),
                seed_input("Of the noise on the reference picture."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For a sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For a sampler."),
                io.Latent.Output(display_name="latent", tooltip="Empty, one for each hint; for a sampler with denoise 1."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip_vision: Any,
        init_image: Any,
        vae: Any,
        hints: Any,
        motion_bucket_id: int,
        fps: int,
        augmentation_level: float,
        clip_preprocess: str,
        seed: int,
    ) -> io.NodeOutput:
        check_choice("clip_preprocess", clip_preprocess, CLIP_PREPROCESS)
        numbers = (motion_bucket_id, fps, augmentation_level)
        return io.NodeOutput(*condition_video(clip_vision, init_image, vae, hints, numbers, clip_preprocess, seed))  # type: ignore[arg-type]


class VideoWindows(io.ComfyNode):
    """`MODEL` to a `MODEL` for long clips."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlVideoWindows",
            display_name="Video Windows",
            category=VIDEO,
            description="Let an SVD model make clips longer than it was trained for, in overlapping windows, as the published "
            "ControlNeXt does: in every window the first hint is the reference's. Memory is that of one window. Works with any "
            "sampler and with guidance that changes over the frames.",
            search_aliases=["context windows", "long video", "sliding window", "svd"],
            inputs=[
                io.Model.Input("model", tooltip="An SVD model, before or after Apply ControlNeXt. It is not changed."),
                io.Int.Input(
                    "window",
                    default=14,
                    min=2,
                    max=1024,
                    tooltip="Frames in a window: 14 for SVD, 24 for the published ControlNeXt v2. A clip of up to this many "
                    "frames is one window.",
                ),
                io.Int.Input(
                    "overlap",
                    default=4,
                    min=1,
                    max=1023,
                    tooltip="Frames that a window shares with the one before it, less than window: 4 with 14, 6 with 24. More "
                    "is smoother and slower.",
                ),
                io.Combo.Input(
                    "blend",
                    options=list(BLENDS),
                    default="average",
                    optional=True,
                    tooltip="How windows meet. average counts them alike, as the published code does; linear fades from one to "
                    "the next.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For a sampler, or for Apply ControlNeXt.")],
        )

    @classmethod
    def execute(cls, model: Any, window: int, overlap: int, blend: str = "average") -> io.NodeOutput:
        check_choice("blend", blend, BLENDS)
        return io.NodeOutput(attach_windows(model, window, overlap, blend))  # type: ignore[arg-type]
