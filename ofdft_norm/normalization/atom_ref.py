"""The atomic reference: an energy linear in the coefficients and in the composition ([M-OFDFT], [STR25])."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.of_data import get_field, molecule_index
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.normalization.guards import check_vector, require_field
from ofdft_norm.normalization.reference import Fields, Reference
from ofdft_norm.settings import Settings
from ofdft_norm.statistics.dataset_statistics import Array, DatasetStatistics
from ofdft_norm.statistics.references import reference_gradient

logger = logging.getLogger(__name__)


class AtomRefConfig(Settings):
    """The atomic reference, linear in coefficients and composition (`AtomRef`).

    Attributes:
        scalar_only: Use the coefficients' mean gradient for l = 0 only.
    """

    scalar_only: bool = False
    config_key = "data.reference"

    @property
    def statistics_name(self) -> str:
        """Name of this reference among the statistics."""
        return "scalar_atom_ref" if self.scalar_only else "atom_ref"


class AtomRef(Reference):
    """E_ref(p) = sum_mu gbar_b(mu) p_mu + sum_atoms t_Z + t_0; its gradient with respect to p is gbar.

    Args:
        t_z: (n_types,) energy of each element of the basis [hartree].
        t_global: Constant [hartree].
        g_z: (n_basis,) gradient gbar, concatenated over elements [hartree].

    Raises:
        StatisticsError: If a value is not finite.
    """

    depends_on_coeffs = True
    own_entries = ("t_global",)
    t_z: Tensor
    t_global: Tensor
    g_z: Tensor

    def __init__(self, t_z: Tensor | Array, t_global: Tensor | Array | float, g_z: Tensor | Array) -> None:
        super().__init__()
        self.register_float64("t_z", t_z)
        self.register_float64("t_global", torch.as_tensor(t_global, dtype=torch.float64).reshape(()))
        self.register_float64("g_z", g_z)
        for name in ("t_z", "t_global", "g_z"):
            if not torch.isfinite(getattr(self, name)).all():
                raise StatisticsError(f"AtomRef: {name} holds values that are not finite")

    @classmethod
    def from_dataset_statistics(
        cls,
        dataset_statistics: DatasetStatistics,
        basis_info: BasisInfo | None = None,
        weigher_key: str = "has_energy_label",
        scalar_only: bool = False,
    ) -> AtomRef:
        """Takes the reference from a data set's statistics.

        Args:
            dataset_statistics: The statistics.
            basis_info: The basis; required if `scalar_only`.
            weigher_key: Whose statistics to use.
            scalar_only: Use gbar for l = 0 only, so that the reference does not depend on the molecule's orientation.

        Raises:
            StatisticsError: If a statistic is missing or does not fit the basis.
            ConfigError: If `scalar_only` is set without a basis.
        """
        name = "scalar_atom_ref" if scalar_only else "atom_ref"
        gbar = dataset_statistics.load_statistic(weigher_key, "gradient_label/mean")
        t_z = dataset_statistics.load_statistic(weigher_key, f"{name}_atom_type_bias")
        t_global = dataset_statistics.load_statistic(weigher_key, f"{name}_global_bias")
        if basis_info is not None and (len(gbar), len(t_z)) != (basis_info.n_basis, basis_info.n_types):
            raise StatisticsError(
                f"{dataset_statistics.path or 'statistics'}: made for {len(t_z)} elements and {len(gbar)} basis "
                f"functions, but the basis has {basis_info.n_types} and {basis_info.n_basis} "
                "(config: data.statistics.path, data.source.basis_info)"
            )
        if scalar_only:
            if basis_info is None:
                raise ConfigError("scalar_only=True needs basis_info, which says which functions are scalar")
            gbar = reference_gradient(name, torch.as_tensor(gbar), basis_info).numpy()
        return cls(t_z, t_global, gbar)

    def sample_forward(self, sample_or_batch: Data) -> Tensor:
        """Returns the reference energy of each molecule.

        Args:
            sample_or_batch: With ORIGINAL (not rescaled) `coeffs`.

        Returns:
            (n_molecules,) float64 [hartree], differentiable with respect to `coeffs`.

        Raises:
            BatchError: If a batch lacks `coeffs_batch`.
            NormalizationError: If the sample lacks a field, or its coefficients have the wrong length.
        """
        return self.energy(sample_or_batch)

    def forward(self, sample_or_batch: Data) -> Tensor:
        """Returns what `sample_forward` does."""
        return self.sample_forward(sample_or_batch)

    def fields_of(self, sample_or_batch: Data) -> dict[str, Tensor]:
        """Returns coefficients and atoms, with the indices of their functions, elements and molecules."""
        coeffs = require_field("coeffs", sample_or_batch, "the atomic reference needs")
        return {
            "coeffs": coeffs,
            "basis_function_ind": check_vector("coeffs", coeffs, sample_or_batch),
            "coeffs_batch": molecule_index(sample_or_batch),
            "atom_ind": require_field("atom_ind", sample_or_batch, "the atomic reference needs"),
            "batch": molecule_index(sample_or_batch, "pos"),
        }

    def energy_of(self, fields: Mapping[str, Tensor], n_molecules: int) -> Tensor:
        """Returns sum_mu gbar p_mu + sum_atoms t_Z + t_0, (n_molecules,) float64 [hartree]."""
        linear = fields["coeffs"].to(torch.float64) * self.gradient_of(fields)
        # molecules come in order; sums of ranges cost a quarter of those by index
        molecules = torch.arange(n_molecules + 1, device=linear.device)
        bounds = torch.searchsorted(fields["coeffs_batch"], molecules)
        energy = torch.segment_reduce(linear, "sum", offsets=bounds, initial=0)
        return energy.index_add(0, fields["batch"], self.t_z[fields["atom_ind"]]) + self.t_global

    def gradient_of(self, fields: Fields) -> Tensor:
        """Returns gbar of each basis function, (n_basis,) float64 [hartree]; where it is given, that."""
        known = get_field(fields, "reference_gradient")
        return self.g_z.index_select(0, fields["basis_function_ind"]) if known is None else known

    def gradient(self, sample_or_batch: Data) -> Tensor:
        """Returns the derivative of `energy` with respect to the coefficients, (n_basis,) float64 [hartree].

        Args:
            sample_or_batch: Raw samples, of which only the basis functions matter.
        """
        index = require_field("basis_function_ind", sample_or_batch, "the atomic reference needs")
        return self.gradient_of({"basis_function_ind": index})

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if prefix + "t_global" not in state_dict and "t_global" not in local_metadata:
            logger.warning(
                "the state dict of an AtomRef has no t_global, which STRUCTURES25 keeps outside: %s hartree stays; "
                "build the module with its own before loading (argument t_global)",
                float(self.t_global),
            )
            state_dict[prefix + "t_global"] = self.t_global
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
