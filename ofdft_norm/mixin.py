"""NormalizerMixin: hands the data module's normaliser to a LightningModule, and into its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from ofdft_norm.checkpoint import check_checkpoint_file, read_from
from ofdft_norm.errors import NormalizationError
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.normalizer_state import describe_difference, normalizer_from_state, normalizer_to_state

_ENTRY = "model_normalizer._extra_state"  # of a model's state dict; torch's name for what get_extra_state returns
_ENTRY_OF_0_1 = "normalizer_slot._extra_state"


class ModelNormalizer(nn.Module):
    """A model's normaliser, or none yet; one entry of the model's state dict, of plain data.

    The normaliser is not registered as a submodule: its buffers would be missing or unexpected keys in strict loading,
    depending on whether the model had one already. It moves with the model all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._normalizers: list[Normalizer] = []  # one or none; a list, so that torch registers nothing

    @property
    def normalizer(self) -> Normalizer | None:
        """The normaliser, if there is one."""
        return self._normalizers[0] if self._normalizers else None

    def copy_of(self, normalizer: Normalizer) -> None:
        """Takes a copy of a normaliser: the data module's own stays on the CPU, where its workers use it.

        Args:
            normalizer: The data module's normaliser.
        """
        self.set_extra_state(normalizer_to_state(normalizer))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ModelNormalizer:
        for normalizer in self._normalizers:
            normalizer._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> dict[str, Any]:
        """Returns the normaliser as plain data."""
        return {} if self.normalizer is None else normalizer_to_state(self.normalizer)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Rebuilds the normaliser; an empty state leaves things as they are."""
        if state:
            with read_from("the model's normaliser in the checkpoint"):
                self._normalizers = [normalizer_from_state(state)]


def normalizer_of_model(trainer: Any) -> Normalizer | None:
    """Returns the normaliser that a trainer's model has, if it has one.

    Args:
        trainer: A Trainer.
    """
    module = getattr(trainer, "lightning_module", None)
    return getattr(getattr(module, "model_normalizer", None), "normalizer", None)


def _ask_datamodule(module: NormalizerMixin, prefix: str, keep_vars: bool) -> None:
    """Runs before a state dict is written: a model that never asked for its normaliser saves it all the same."""
    datamodule = getattr(getattr(module, "_trainer", None), "datamodule", None)
    if module.model_normalizer.normalizer is None and getattr(datamodule, "has_normalizer", False):
        module.model_normalizer.copy_of(cast(Any, datamodule).normalizer)


def _accept_older_states(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Runs before a state dict is read: version 0.1 named the entry otherwise, models without the mixin have none."""
    state_dict.setdefault(prefix + _ENTRY, state_dict.pop(prefix + _ENTRY_OF_0_1, {}))


class NormalizerMixin:
    """Gives a LightningModule `self.normalizer`; list it before `LightningModule` among the bases.

    The normaliser is a copy of the data module's, made on first use, on the module's device. It travels in the module's
    state dict, so that ``Model.load_from_checkpoint(path)`` denormalises on a machine without any data set.

    A Trainer's checkpoint holds it once, in the data module's state, from where `on_load_checkpoint` takes it; a model
    that overrides that method keeps an entry of its own.

    Args:
        *args: Arguments of the LightningModule.
        **kwargs: Arguments of the LightningModule.

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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses classes of which a base that is a module comes first: torch's would hide what is here.

        Raises:
            TypeError: If one does.
        """
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[1 : cls.__mro__.index(NormalizerMixin)]
        modules = [base.__name__ for base in before if issubclass(base, nn.Module)]
        if modules and not any(issubclass(base, NormalizerMixin) for base in before):
            raise TypeError(
                f"class {cls.__name__}: expected NormalizerMixin before {modules[0]} among its bases: "
                f"class {cls.__name__}(NormalizerMixin, {modules[0]})"
            )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_normalizer = ModelNormalizer()
        module = cast(nn.Module, self)
        module.register_state_dict_pre_hook(_ask_datamodule)
        module.register_load_state_dict_pre_hook(_accept_older_states)

    @property
    def normalizer(self) -> Normalizer:
        """The normaliser.

        Raises:
            NormalizationError: If there is none yet: no checkpoint was loaded and no trainer with an
                `OFDFTDataModule` is attached.
        """
        if self.model_normalizer.normalizer is None:
            trainer = getattr(self, "_trainer", None)
            normalizer = getattr(getattr(trainer, "datamodule", None), "normalizer", None)
            if normalizer is None:
                raise NormalizationError(
                    "the model has no normaliser yet: load a checkpoint that holds one, train it with an "
                    "OFDFTDataModule, or set model.normalizer"
                )
            self.model_normalizer.copy_of(normalizer)
        own = cast(Normalizer, self.model_normalizer.normalizer)
        device = getattr(self, "device", own.energy_scale.device)
        return own if own.energy_scale.device == device else own.to(device)

    def __setattr__(self, name: str, value: Any) -> None:
        # a property's setter would not do: torch registers modules before it looks for one
        if name == "normalizer":
            self.model_normalizer.copy_of(value)
        else:
            super().__setattr__(name, value)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As LightningModule's; a file that is damaged or lacks something is an error that names it.

        Args:
            checkpoint_path: The checkpoint.
            *args: As LightningModule's.
            **kwargs: As LightningModule's.

        Raises:
            ConfigError: If it is damaged.
        """
        check_checkpoint_file(checkpoint_path)
        with read_from(checkpoint_path, malformed=(LookupError,)):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)  # type: ignore[misc]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Empties the model's entry where the data module's state, in the same checkpoint, holds the normaliser.

        Args:
            checkpoint: The checkpoint to be written, changed in place.
        """
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        in_datamodule, own = _of_datamodule(checkpoint), checkpoint["state_dict"].get(_ENTRY)
        finds_it_again = type(self).on_load_checkpoint is NormalizerMixin.on_load_checkpoint
        if in_datamodule and own and finds_it_again and not describe_difference(in_datamodule, own):
            checkpoint["state_dict"][_ENTRY] = {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the normaliser from the data module's state where the model's entry is empty or missing.

        Args:
            checkpoint: The checkpoint that was read.
        """
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        states = checkpoint["state_dict"]
        if not states.get(_ENTRY) and not states.get(_ENTRY_OF_0_1):
            states[_ENTRY] = _of_datamodule(checkpoint) or {}


def _of_datamodule(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the normaliser that a data module's state in a checkpoint holds; its key is the data module's class."""
    states = (value for value in checkpoint.values() if isinstance(value, dict))
    return next((state["normalizer"] for state in states if {"normalizer", "arguments"} <= set(state)), None)
