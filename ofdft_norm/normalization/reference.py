"""What every reference energy offers to the normaliser."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.of_data import n_molecules
from ofdft_norm.normalization.float64_module import Float64Module


class Reference(Float64Module):
    """A reference energy E_ref of each molecule, and its gradient with respect to the coefficients.

    `fields_of` checks a sample and collects what the reference reads; `energy_of` and `gradient_of` are the formulas,
    on tensors alone.

    Attributes:
        depends_on_coeffs: Whether E_ref depends on the coefficients; if not, its gradient is None.
    """

    depends_on_coeffs = False

    def fields_of(self, sample_or_batch: Data) -> dict[str, Tensor]:
        """Returns the fields that the reference reads.

        Raises:
            NormalizationError: If a field is missing, or has the wrong length.
            BatchError: If a batch does not say which molecule its entries belong to.
        """
        raise NotImplementedError

    def energy_of(self, fields: Mapping[str, Tensor], n_molecules: int) -> Tensor:
        """Returns E_ref, (n_molecules,) float64 [hartree], from `fields_of`."""
        raise NotImplementedError

    def gradient_of(self, fields: Mapping[str, Tensor]) -> Tensor | None:
        """Returns dE_ref/dp, (n_basis,) float64 [hartree]; see `depends_on_coeffs`."""
        return None

    def check_elements(self, sample_or_batch: Data) -> None:
        """Refuses atoms that the reference knows nothing about.

        Raises:
            NormalizationError: If there are any.
        """

    def energy(self, sample_or_batch: Data) -> Tensor:
        """Returns E_ref of each molecule, (n_molecules,) float64 [hartree], of raw samples.

        Raises:
            NormalizationError: See `fields_of` and `check_elements`.
            BatchError: See `fields_of`.
        """
        self.check_elements(sample_or_batch)
        return self.energy_of(self.fields_of(sample_or_batch), n_molecules(sample_or_batch))
