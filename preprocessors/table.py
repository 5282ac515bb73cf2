"""Every type of hint by name: what nodes, tests and dataset making go through."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from .canny import canny

PREPROCESSORS: Mapping[str, Callable[..., Tensor]] = {"canny": canny}
