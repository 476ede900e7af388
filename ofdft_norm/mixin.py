"""NormalizerMixin: hands the data module's normaliser to a LightningModule, and into its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from ofdft_norm.errors import NormalizationError
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.normalizer_state import normalizer_from_state, normalizer_to_state


class NormalizerSlot(nn.Module):
    """Holds a normaliser, or none yet; saves it whole as extra state, so that a module loads before it has one.

    The normaliser is not registered as a submodule: its buffers would be missing or unexpected keys in strict loading,
    depending on the order of things. It moves with the slot all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Normalizer] = []

    @property
    def held(self) -> Normalizer | None:
        """The normaliser, if there is one."""
        return self._held[0] if self._held else None

    def hold(self, normalizer: Normalizer) -> None:
        """Takes a normaliser."""
        self._held = [normalizer]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NormalizerSlot:
        for normalizer in self._held:
            normalizer._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> dict[str, Any]:
        """Returns the normaliser as plain data."""
        return {} if self.held is None else normalizer_to_state(self.held)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Rebuilds the normaliser."""
        if state:
            self.hold(normalizer_from_state(state))


def held_normalizer(trainer: Any) -> Normalizer | None:
    """Returns the normaliser that a trainer's model has, if it has one."""
    module = getattr(trainer, "lightning_module", None)
    return getattr(getattr(module, "normalizer_slot", None), "held", None)


def _take_known(module: NormalizerMixin, prefix: str, keep_vars: bool) -> None:
    """Runs before a state dict is written: a model that never asked for its normaliser saves it all the same."""
    if module.normalizer_slot.held is None:
        trainer = getattr(module, "_trainer", None)
        known = getattr(getattr(trainer, "datamodule", None), "known_normalizer", None)
        if known is not None:
            module.hold_normalizer(known)


class NormalizerMixin:
    """Gives a LightningModule `self.normalizer`; list it before `LightningModule` among the bases.

    The normaliser is the data module's, copied on first use (at the latest when training, validation, testing or
    prediction starts) and moved to the module's device; it travels in the module's state dict, so that
    ``Model.load_from_checkpoint(path)`` denormalises on a machine without any data set.

    Example:
        >>> from lightning import LightningModule
        >>> from ofdft_norm import Normalizer, NormalizerMixin
        >>> class Model(NormalizerMixin, LightningModule):
        ...     pass
        >>> model = Model()
        >>> model.normalizer = Normalizer(energy_scale=2.0)
        >>> float(model.normalizer.energy_scale)
        2.0
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.normalizer_slot = NormalizerSlot()
        cast(nn.Module, self).register_state_dict_pre_hook(_take_known)

    @property
    def normalizer(self) -> Normalizer:
        """The normaliser.

        Raises:
            NormalizationError: If there is none yet: no checkpoint was loaded and no trainer with an
                `OFDFTDataModule` is attached.
        """
        if self.normalizer_slot.held is None:
            trainer = getattr(self, "_trainer", None)
            normalizer = getattr(getattr(trainer, "datamodule", None), "normalizer", None)
            if normalizer is None:
                raise NormalizationError(
                    "the model has no normaliser yet: load a checkpoint, train it with an OFDFTDataModule, or set "
                    "model.normalizer"
                )
            self.hold_normalizer(normalizer)
        held = cast(Normalizer, self.normalizer_slot.held)
        device = getattr(self, "device", held.energy_scale.device)
        return held if held.energy_scale.device == device else held.to(device)

    def __setattr__(self, name: str, value: Any) -> None:
        # a property's setter would not do: torch registers modules before it looks for one
        if name == "normalizer":
            self.hold_normalizer(value)
        else:
            super().__setattr__(name, value)

    def hold_normalizer(self, normalizer: Normalizer) -> None:
        """Takes a copy of a normaliser: the data module's own stays on the CPU, where its workers use it."""
        copied = normalizer_from_state(normalizer_to_state(normalizer))
        self.normalizer_slot.hold(copied.to(getattr(self, "device", "cpu")))

    def _take_normalizer(self) -> None:
        trainer = getattr(self, "_trainer", None)
        if hasattr(type(getattr(trainer, "datamodule", None)), "normalizer"):
            _ = self.normalizer

    def on_train_start(self) -> None:
        """Takes the data module's normaliser before training starts; a checkpoint has been restored by now."""
        super().on_train_start()  # type: ignore[misc]
        self._take_normalizer()

    def on_validation_start(self) -> None:
        """Takes the data module's normaliser before validation starts."""
        super().on_validation_start()  # type: ignore[misc]
        self._take_normalizer()

    def on_test_start(self) -> None:
        """Takes the data module's normaliser before testing starts."""
        super().on_test_start()  # type: ignore[misc]
        self._take_normalizer()

    def on_predict_start(self) -> None:
        """Takes the data module's normaliser before prediction starts."""
        super().on_predict_start()  # type: ignore[misc]
        self._take_normalizer()
