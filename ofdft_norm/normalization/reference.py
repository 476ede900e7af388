"""What every reference energy offers to the normaliser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.of_data import n_molecules
from ofdft_norm.normalization.float64_module import Float64Module

Fields: TypeAlias = Data | Mapping[str, Tensor]


class Reference(Float64Module):
    """A reference energy E_ref of each molecule, and its gradient with respect to the coefficients.

    `fields_of` checks a sample and collects what the reference reads; `energy_of` and `gradient_of` are the formulas,
    on tensors alone.

    The state dict of a reference alone loads into fairchem's or STRUCTURES25's class with ``strict=True``: what those
    do not have (`own_entries`) stands in its metadata, where torch keeps versions, not among its entries. Inside a
    larger module's state dict all stands among the entries.

    Attributes:
        depends_on_coeffs: Whether E_ref depends on the coefficients; if not, its gradient is None.
        own_entries: Entries of the state dict that the classes of the same name elsewhere do not have.
    """

    depends_on_coeffs = False
    own_entries: tuple[str, ...] = ()

    def fields_of(self, sample_or_batch: Data) -> dict[str, Tensor]:
        """Returns the fields that the reference reads.

        Args:
            sample_or_batch: Raw samples.

        Raises:
            NormalizationError: If a field is missing, or has the wrong length.
            BatchError: If a batch does not say which molecule its entries belong to.
        """
        raise NotImplementedError

    def energy_of(self, fields: Mapping[str, Tensor], n_molecules: int) -> Tensor:
        """Returns E_ref, (n_molecules,) float64 [hartree], from `fields_of`.

        Args:
            fields: What `fields_of` returned.
            n_molecules: Number of molecules.
        """
        raise NotImplementedError

    def gradient_of(self, fields: Fields) -> Tensor | None:
        """Returns dE_ref/dp, (n_basis,) float64 [hartree]; see `depends_on_coeffs`.

        Args:
            fields: What `fields_of` returned.
        """
        return None

    def check_elements(self, sample_or_batch: Data) -> None:
        """Refuses atoms that the reference knows nothing about.

        Args:
            sample_or_batch: Samples of any kind.

        Raises:
            NormalizationError: If there are any.
        """

    def energy(self, sample_or_batch: Data) -> Tensor:
        """Returns E_ref of each molecule, (n_molecules,) float64 [hartree], of raw samples.

        Args:
            sample_or_batch: Raw samples.

        Raises:
            NormalizationError: See `fields_of` and `check_elements`.
            BatchError: See `fields_of`.
        """
        self.check_elements(sample_or_batch)
        return self.energy_of(self.fields_of(sample_or_batch), n_molecules(sample_or_batch))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if not prefix and metadata is not None:
            metadata[""] |= {name: destination.pop(name) for name in self.own_entries if name in destination}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        for name in self.own_entries:
            if name in local_metadata:
                state_dict.setdefault(prefix + name, local_metadata[name])
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
