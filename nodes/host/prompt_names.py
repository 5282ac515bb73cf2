"""Which of the prompts that a sampler evaluates is its negative one: told by the guider's own names for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

logger = logging.getLogger("nextcontrol")

KEY = "nextcontrol.prompt_names"
NEGATIVE = "negative"
"""In the host's names of negative prompts: "negative", and Perp-Neg's "empty_negative_prompt"."""
SECOND = 1
"""The negative prompt's place where nothing tells it: the host's own sampling function asks for [positive, negative]."""

Prompts = Sequence[Mapping[str, Any]]


class PromptNames:
    """The wrappers of one model, and of its clones.

    A guider keeps its prompts by name and asks for them in an order of its own: [positive, negative], or with two prompts
    [negative, middle, positive]; and patches ask for one of them once more. So the names are taken from the guider at each
    step, and the prompts of an evaluation are known again by these very lists, or by the id that the host has given their
    first entry. (The host appends copies of other prompts' areas, ids included, so that later entries tell nothing.)
    """

    def __init__(self) -> None:
        self._is_noted = False

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptNames:
        return self

    def on_pre_run(self, _model: ModelPatcher) -> None:
        """Start of a run."""
        self._is_noted = False

    def predict_noise(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Wrapper of the guider's `predict_noise`: note what it calls its prompts."""
        return executor(x, timestep, _with(model_options or {}, _Named(executor.class_obj)), seed)

    def calc_cond_batch(
        self,
        executor: Callable[..., Any],
        model: Any,
        conds: Sequence[Prompts | None],
        x: Tensor,
        timestep: Tensor,
        model_options: Mapping[str, Any],
    ) -> Any:
        """Wrapper of the host's `calc_cond_batch`: note which of the prompts are negative ones."""
        named = model_options.get("transformer_options", {}).get(KEY)
        # A guider that runs another one's step, or a pass within a pass, has been told already.
        source = named.named if isinstance(named, _Told) else named
        told = _Told(source, tuple(None if source is None else source.is_negative(prompts) for prompts in conds))
        return executor(model, conds, x, timestep, _with(model_options, told))

    def negatives(self, options: Mapping[str, Any], prompts: Sequence[int]) -> list[bool]:
        """Which prompts of a call of the UNet are negative ones.

        Args:
            options: The host's `transformer_options`.
            prompts: Place of each in the evaluation, as the host's `cond_or_uncond`.

        Returns:
            One for each. Where it cannot be told, the second prompt of an evaluation counts as the negative one, and the log
            says so once a run.
        """
        told = options.get(KEY)
        known = told.negatives if isinstance(told, _Told) else ()
        found = [known[place] if place < len(known) else None for place in prompts]
        if None in found and not self._is_noted:
            self._is_noted = True
            logger.info(
                "This sampler, or a node on the model, does not tell which prompt is the negative one: for ControlNeXt the "
                "second one that it evaluates counts as such."
            )
        return [place == SECOND if own is None else own for place, own in zip(prompts, found, strict=True)]


class _Named:
    """A guider's prompts at one step, by its names."""

    def __init__(self, guider: Any) -> None:
        self.prompts: dict[str, Prompts] = {
            name: prompts for name, prompts in (getattr(guider, "conds", None) or {}).items() if prompts
        }
        # Before the host adds to them.
        original: Mapping[str, Prompts] = getattr(guider, "original_conds", None) or self.prompts
        self.first = {name: {_id_of(one) for one in prompts} for name, prompts in original.items() if prompts}

    def is_negative(self, prompts: Prompts | None) -> bool | None:
        """Whether a list of prompts is a negative one; None where that cannot be told, or there is nothing in it."""
        if not prompts:
            return None
        names = [name for name, own in self.prompts.items() if own is prompts]
        if not names:
            own_id = _id_of(prompts[0])
            names = [name for name, ids in self.first.items() if own_id is not None and own_id in ids]
        found = {NEGATIVE in name for name in names}
        return found.pop() if len(found) == 1 else None


class _Told:
    """The prompts of one evaluation."""

    def __init__(self, named: _Named | None, negatives: tuple[bool | None, ...]) -> None:
        self.named = named
        self.negatives = negatives


def add_prompt_names(clone: ModelPatcher) -> PromptNames:
    """Make the negative prompts known during sampling; the same object however often it is asked for."""
    for wrapper in clone.get_wrappers(WrappersMP.CALC_COND_BATCH, KEY):
        names: PromptNames = wrapper.__self__
        return names
    names = PromptNames()
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, names.predict_noise)
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, names.calc_cond_batch)
    clone.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, names.on_pre_run)
    return names


def _with(model_options: Mapping[str, Any], value: Any) -> dict[str, Any]:
    return {**model_options, "transformer_options": {**model_options.get("transformer_options", {}), KEY: value}}


def _id_of(prompt: Mapping[str, Any]) -> Any:
    return prompt.get("uuid")
