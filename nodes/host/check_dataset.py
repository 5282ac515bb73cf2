"""The pair doctor with the host's progress bar and cancel button."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
from torch import Tensor

from ...preprocessors.table import PREPROCESSORS
from ...training.check import check_pairs
from ...training.dataset import PairDataset


def check_dataset(dataset: PairDataset, hint_type: str) -> tuple[str, Tensor]:
    """Look through a dataset.

    Args:
        dataset: As found.
        hint_type: A key of `PREPROCESSORS`, or anything else where it is not known.

    Returns:
        The report, and the contact sheet (1, H, W, 3).
    """
    row = PREPROCESSORS.get(hint_type)
    bar = comfy.utils.ProgressBar(1)

    def on_item(done: int, count: int) -> None:
        bar.update_absolute(done, count)
        comfy.model_management.throw_exception_if_processing_interrupted()

    report = check_pairs(dataset, row.background if row else "", on_item)
    return report.text(), report.sheet()[None]
