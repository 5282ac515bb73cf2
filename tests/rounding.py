"""Equal weights that lie at different places in memory compute the same but for rounding."""

from __future__ import annotations

from torch import Tensor
from torch.testing import assert_close

TOLERANCE = 1e-5
"""Of the largest value. A file's tensors are mapped to where its header ends, and at another alignment a CPU may take
another kernel: results of the same weights from two files were up to 2.1e-6 of the largest value apart."""


def assert_same_but_for_rounding(found: Tensor, expected: Tensor) -> None:
    """For results from two files, or from a file and from memory; what shares its weights is compared bit for bit."""
    assert_close(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
