"""Nodes that find, make and check pairs of pictures."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..preprocessors.table import PREPROCESSORS
from ..training.dataset import BAD_PAIRS, DatasetSettings
from ..training.make_pairs import CAPTIONS, MakeSettings
from .host.check_dataset import check_dataset
from .host.controlnext_file import check_choice
from .host.dataset_folders import check_folder_name, find_folder, find_pictures, open_dataset, stamp_of
from .host.hint_output import preview
from .host.make_hints import make_dataset, read_options
from .host.text import readable
from .sockets import PAIR_DATASET, TRAINING, schema

UNKNOWN = "unknown"
"""In place of a type of hint that the pack does not make."""


class PairDatasetNode(io.ComfyNode):
    """A folder to `PAIR_DATASET`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlPairDataset",
            display_name="Pair Dataset (Training Data)",
            category=TRAINING,
            description="Find pairs of hint and target in a folder: source/, target/ and prompt.json as CtrLoRA has them, "
            "folders with files of the same names and .txt captions, or metadata.jsonl.",
            search_aliases=["dataset", "training data", "folder", "pairs", "train controlnet", "train lora"],
            advanced=["prompt_dropout", "subset", "repeats", "bad_pairs", "hint_type"],
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
                io.Int.Input("subset", default=0, min=0, max=100_000, tooltip="Take the first pairs only. 0 takes all."),
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
                    tooltip="Name of the condition, such as canny, for the metadata of what is trained. Empty takes what Make "
                    "Pairs wrote.",
                ),
            ],
            outputs=[
                PAIR_DATASET.Output(display_name="dataset", tooltip="For Train CtrLoRA, Train ControlNeXt and Check Pairs.")
            ],
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


class MakePairs(io.ComfyNode):
    """A folder of pictures to a folder of pairs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlMakePairs",
            display_name="Make Pairs (Training Data)",
            category=TRAINING,
            description="Make a dataset from a folder of pictures: each gets a hint of the chosen type. Goes on where it was "
            "stopped, never writes over a file, and lists the pictures that it leaves out.",
            search_aliases=["dataset", "preprocess", "batch", "training data", "train controlnet", "train lora", "captions"],
            advanced=["options", "annotator"],
            inputs=[
                io.String.Input(
                    "pictures",
                    default="",
                    tooltip="Folder with pictures below ComfyUI's input/, sub-folders included. demo_pictures comes with "
                    "NextControl.",
                ),
                io.String.Input(
                    "folder",
                    default="my_pairs",
                    tooltip="The dataset's folder, made below ComfyUI's input/ if it is not there.",
                ),
                io.Combo.Input(
                    "hint_type", options=list(PREPROCESSORS), default="canny", tooltip="What is drawn from each picture."
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=64,
                    tooltip="Shorter side of the pairs in pixels; both sides become multiples of 64.",
                ),
                io.Combo.Input(
                    "captions",
                    options=list(CAPTIONS),
                    default="beside",
                    tooltip="Text of a pair: from the .txt beside the picture, from its file name, or none.",
                ),
                io.String.Input(
                    "options",
                    default="",
                    optional=True,
                    tooltip="Options of the hint type as JSON, by the names in the hint node, such as low_threshold. Empty "
                    "takes the defaults.",
                ),
                io.String.Input(
                    "annotator",
                    default="",
                    optional=True,
                    tooltip="Folder in models/annotators, for the types that need one. Empty takes the first that fits.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="folder", tooltip="The dataset's folder, for Pair Dataset."),
                io.String.Output(display_name="report", tooltip="How many pairs were made, and what was left out and why."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, pictures: str, folder: str) -> bool | str:
        """Name a missing or impossible folder before anything runs."""
        try:
            if pictures is not None:
                find_pictures(pictures)
            if folder is not None:
                check_folder_name(folder, "folder")
        except (FileNotFoundError, ValueError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, pictures: str, folder: str, **choices: Any) -> Any:
        """Run again when a picture was added, or a pair taken away."""
        return stamp_of(pictures), stamp_of(folder), choices

    @classmethod
    def execute(
        cls,
        pictures: str,
        folder: str,
        hint_type: str,
        resolution: int,
        captions: str,
        options: str = "",
        annotator: str = "",
    ) -> io.NodeOutput:
        check_choice("hint_type", hint_type, tuple(PREPROCESSORS))
        check_choice("captions", captions, CAPTIONS)
        settings = MakeSettings(hint_type, read_options(hint_type, options), resolution, captions)
        report = readable(make_dataset(pictures, folder, settings, annotator.strip()))
        return io.NodeOutput(folder.strip(), report, ui=ui.PreviewText(report))


class CheckPairs(io.ComfyNode):
    """`PAIR_DATASET` to a report."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NextControlCheckPairs",
            display_name="Check Pairs",
            category=TRAINING,
            description="Look through a dataset before training: orphans, unreadable or blank pictures, inverted polarity, "
            "shapes that differ, depths that are scaled, duplicates, captions. The report appears on the node, with a contact "
            "sheet.",
            search_aliases=["dataset", "doctor", "validate", "contact sheet", "training data"],
            inputs=[
                PAIR_DATASET.Input("dataset", tooltip="From Pair Dataset."),
                io.Combo.Input(
                    "hint_type",
                    options=[UNKNOWN, *PREPROCESSORS],
                    default=UNKNOWN,
                    tooltip="Type of the hints, by which inverted ones are found. unknown takes what Make Pairs "
                    "wrote, if anything.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="What was found, and in which pairs."),
                io.Image.Output(display_name="sheet", tooltip="Hint and target of twelve pairs, those with a problem first."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dataset: Any, hint_type: str) -> io.NodeOutput:
        check_choice("hint_type", hint_type, (UNKNOWN, *PREPROCESSORS))
        report, sheet = check_dataset(dataset, dataset.hint_type if hint_type == UNKNOWN else hint_type)
        report = readable(report)
        shown = preview(sheet)
        return io.NodeOutput(report, sheet, ui={**(shown.as_dict() if shown else {}), "text": [report]})
