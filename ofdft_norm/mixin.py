"""NormalizerMixin gives the data module's normaliser to a LightningModule and stores it in the model's checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

from torch import Tensor, nn

from ofdft_norm.checkpoint import MODEL_ENTRY, check_checkpoint_file, find_data_module_state, name_errors
from ofdft_norm.errors import NormalizationError
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.normalization.state import dump_normalizer, load_normalizer


class ModelNormalizer(nn.Module):
    """A model's normaliser, or none yet: one entry of the model's state dict, of plain data.

    The normaliser is not a submodule: its buffers would be missing or unexpected keys in strict loading, depending on
    whether the model has one yet. It still moves with the model. A deep copy without a normaliser, such as the average
    of Lightning's `WeightAveraging`, which is made before training, has the normaliser of the original.
    """

    def __init__(self) -> None:
        super().__init__()
        self._normalizers: list[Normalizer] = []  # one or none; torch does not register modules in a list
        self._originals: list[ModelNormalizer] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelNormalizer:
        copied = memo[id(self)] = ModelNormalizer()
        copied._normalizers, copied._originals = deepcopy(self._normalizers, memo), [self]
        return copied

    @property
    def normalizer(self) -> Normalizer | None:
        """The normaliser, if there is one."""
        if self._normalizers:
            return self._normalizers[0]
        return self._originals[0].normalizer if self._originals else None

    def set_copy(self, normalizer: Normalizer) -> None:
        """Stores a copy: the data module's own normaliser stays on the CPU, where its workers use it."""
        self.set_extra_state(dump_normalizer(normalizer))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ModelNormalizer:
        for normalizer in self._normalizers:
            normalizer._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> dict[str, Any]:
        """Returns the normaliser as plain data; empty if there is none."""
        return {} if self.normalizer is None else dump_normalizer(self.normalizer)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Rebuilds the normaliser; an empty state changes nothing."""
        if state:
            with name_errors("the model's normaliser in the checkpoint"):
                self._normalizers = [load_normalizer(state)]


def get_model_normalizer(trainer: Any) -> Normalizer | None:
    """Returns the normaliser of a trainer's model, if it has one."""
    slot = getattr(getattr(trainer, "lightning_module", None), "model_normalizer", None)
    return slot.normalizer if isinstance(slot, ModelNormalizer) else None


def copy_normalizer(module: Any, *_: Any) -> None:
    """Copies the data module's normaliser to a model that has not read it, when it is saved and after training."""
    if not isinstance(module, NormalizerMixin):
        return
    datamodule = getattr(getattr(module, "_trainer", None), "datamodule", None)
    if module.model_normalizer.normalizer is None and getattr(datamodule, "has_normalizer", False):
        module.model_normalizer.set_copy(cast(Any, datamodule).normalizer)


def _add_empty_entry(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Runs before a state dict is read: checkpoints of models without the mixin lack the entry."""
    state_dict.setdefault(prefix + MODEL_ENTRY, {})


class NormalizerMixin:
    """Gives a LightningModule `self.normalizer`; list it before `LightningModule` among the bases.

    The normaliser is a copy of the data module's, made at the first use, on the module's device. It is part of the
    module's state dict: ``Model.load_from_checkpoint(path)`` has it on a machine without any data set.

    Args:
        *args: Arguments of the LightningModule.
        **kwargs: Arguments of the LightningModule.

    Examples:
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
        """Refuses classes that list a torch module before this one: the module's methods would hide these."""
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
        module.register_state_dict_pre_hook(copy_normalizer)
        module.register_load_state_dict_pre_hook(_add_empty_entry)

    @property
    def normalizer(self) -> Normalizer:
        """The normaliser.

        Raises:
            NormalizationError: If no checkpoint was loaded and no trainer with an `OFDFTDataModule` is attached.
        """
        if self.model_normalizer.normalizer is None:
            trainer = getattr(self, "_trainer", None)
            normalizer = getattr(getattr(trainer, "datamodule", None), "normalizer", None)
            if normalizer is None:
                raise NormalizationError(
                    "the model has no normaliser yet: load a checkpoint with one, train it with an OFDFTDataModule, or "
                    "set model.normalizer"
                )
            self.model_normalizer.set_copy(normalizer)
        found = cast(Normalizer, self.model_normalizer.normalizer)
        device = getattr(self, "device", found.energy_scale.device)
        return found if found.energy_scale.device == device else found.to(device)

    def __setattr__(self, name: str, value: Any) -> None:
        # torch registers modules before it looks for a property's setter
        if name == "normalizer":
            self.model_normalizer.set_copy(value)
        else:
            super().__setattr__(name, value)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses checkpoints of other versions of this package; Lightning calls this."""
        find_data_module_state(checkpoint)
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As LightningModule's; raises ConfigError with the file's name if it is damaged or lacks an entry.

        Args:
            checkpoint_path: The checkpoint.
            *args: As LightningModule's.
            **kwargs: As LightningModule's.
        """
        check_checkpoint_file(checkpoint_path)
        with name_errors(checkpoint_path, malformed=(LookupError,)):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)  # type: ignore[misc]
