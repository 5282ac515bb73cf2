"""Nodes that find, make and check pairs of pictures."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..training.dataset import BAD_PAIRS, DatasetSettings
from .host.controlnext_file import check_choice
from .host.dataset_folders import find_folder, open_dataset, stamp_of
from .sockets import PAIR_DATASET, TRAINING, schema


class PairDatasetNode(io.ComfyNode):
    """A folder to `PAIR_DATASET`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlPairDataset",
            display_name="Pair Dataset",
            category=TRAINING,
            description="Find pairs of hint and target in a folder: source/, target/ and prompt.json as CtrLoRA has them, "
            "folders with files of the same names and .txt captions, or metadata.jsonl.",
            search_aliases=["dataset", "training data", "folder", "pairs"],
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Below ComfyUI's input/, or below a place that extra_model_paths.yaml names as "
                    "nextcontrol_datasets. Nothing outside is read.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=64,
                    tooltip="Side of the squares that pictures are cut to, in pixels.",
                ),
                io.Boolean.Input(
                    "aspect_buckets",
                    default=False,
                    tooltip="Follow each picture's shape, with about as many pixels, in place of squares.",
                ),
                io.Boolean.Input(
                    "flip", default=False, tooltip="Mirror half of the draws. Not for hints with a left and a right."
                ),
                io.Float.Input(
                    "prompt_dropout",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Part of the draws that get an empty caption. 0.3 as published.",
                ),
                io.Int.Input("subset", default=0, min=0, max=10_000_000, tooltip="Take the first pairs only. 0 takes all."),
                io.Int.Input("repeats", default=1, min=1, max=1000, tooltip="How often an epoch sees each pair."),
                io.Combo.Input(
                    "bad_pairs",
                    options=list(BAD_PAIRS),
                    default="refuse",
                    tooltip="What is done about pairs that cannot be read or do not fit: refuse to train, or skip them and say "
                    "so in the log.",
                ),
                io.String.Input(
                    "hint_type",
                    default="",
                    optional=True,
                    tooltip="Name of the condition, such as canny, for the LoRA's metadata. Empty takes what Make Pairs wrote.",
                ),
            ],
            outputs=[PAIR_DATASET.Output(display_name="dataset", tooltip="For Train CtrLoRA and Check Pairs.")],
        )

    @classmethod
    def validate_inputs(cls, folder: str) -> bool | str:
        """Name a missing folder before anything runs."""
        if folder is not None:  # what comes through a link is not known yet
            try:
                find_folder(folder)
            except (FileNotFoundError, ValueError) as error:
                return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str, **choices: Any) -> Any:
        """Look again when a file in the folder has changed."""
        return stamp_of(folder), choices

    @classmethod
    def execute(
        cls,
        folder: str,
        resolution: int,
        aspect_buckets: bool,
        flip: bool,
        prompt_dropout: float,
        subset: int,
        repeats: int,
        bad_pairs: str,
        hint_type: str = "",
    ) -> io.NodeOutput:
        check_choice("bad_pairs", bad_pairs, BAD_PAIRS)
        settings = DatasetSettings(
            resolution, aspect_buckets, flip, prompt_dropout, subset, repeats, bad_pairs, hint_type.strip()
        )
        return io.NodeOutput(open_dataset(folder, settings))
