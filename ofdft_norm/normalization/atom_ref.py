"""The atomic reference: an energy linear in the coefficients and in the composition ([M-OFDFT], [STR25])."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.sample import count_molecules, find_molecule_index
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.normalization.base import OutputDtype, Reference, check_basis, get_function_index, require_field
from ofdft_norm.settings import Settings
from ofdft_norm.statistics.store import Array, DatasetStatistics

logger = logging.getLogger(__name__)


class AtomRefConfig(Settings):
    """The atomic reference, linear in coefficients and composition (`AtomRef`).

    Attributes:
        scalar_only: Use the mean gradient of the coefficients with l = 0 only.
    """

    scalar_only: bool = False
    config_key = "data.reference"


class AtomRef(Reference):
    """E_ref(p) = sum_mu gbar_b(mu) p_mu + sum_atoms t_Z + t_0; its gradient with respect to p is gbar.

    Differentiable twice with respect to the coefficients, as losses on gradients need.

    Args:
        t_z: (n_types,) energy of each element of the basis [hartree].
        t_global: Constant [hartree].
        g_z: (n_basis,) gradient gbar, concatenated over elements [hartree].
        output_dtype: Dtype of the energies: ``float64`` (default); ``input``, the dtype of the coefficients, for a
            layer of a float32 network, where float64 would raise "mat1 and mat2 must have the same dtype"; or a
            torch.dtype. Energies are computed in float64.

    Raises:
        StatisticsError: If a value is not finite.
        ConfigError: If `output_dtype` is unknown.
    """

    depends_on_coeffs = True
    own_entries = ("t_global",)
    t_z: Tensor
    t_global: Tensor
    g_z: Tensor

    def __init__(
        self,
        t_z: Tensor | Array,
        t_global: Tensor | Array | float,
        g_z: Tensor | Array,
        output_dtype: OutputDtype = "float64",
    ) -> None:
        super().__init__()
        self.set_output_dtype(output_dtype)
        for name, value in (("t_z", t_z), ("t_global", t_global), ("g_z", g_z)):
            self.register_float64(name, value)
            if not torch.isfinite(getattr(self, name)).all():
                raise StatisticsError(f"AtomRef: {name} has values that are not finite")
        self.t_global = self.t_global.reshape(())

    @classmethod
    def from_dataset_statistics(
        cls,
        dataset_statistics: DatasetStatistics,
        basis_info: BasisInfo | None = None,
        weigher_key: str = "has_energy_label",
        scalar_only: bool = False,
        output_dtype: OutputDtype = "float64",
    ) -> AtomRef:
        """Takes the reference from dataset statistics.

        Args:
            dataset_statistics: The statistics.
            basis_info: The basis; required if `scalar_only`.
            weigher_key: Key of the weigher of these statistics.
            scalar_only: Use gbar for l = 0 only, so that the reference is invariant under rotations of the molecule.
            output_dtype: See the class.

        Raises:
            StatisticsError: If a statistic is missing or does not fit the basis.
            ConfigError: If `scalar_only` is set without a basis.
        """
        name = "scalar_atom_ref" if scalar_only else "atom_ref"
        keys = "gradient_label/mean", f"{name}_atom_type_bias", f"{name}_global_bias"
        gbar, t_z, t_global = map(partial(dataset_statistics.load_statistic, weigher_key), keys)
        basis_info = check_basis(dataset_statistics, basis_info, len(gbar))
        if scalar_only:
            if basis_info is None:
                raise ConfigError("scalar_only=True needs basis_info, to select the functions with l = 0")
            gbar = np.where(basis_info.l_per_basis_func == 0, gbar, 0.0)
        return cls(t_z, t_global, gbar, output_dtype)

    def sample_forward(self, sample_or_batch: Data) -> Tensor:
        """Returns the reference energy of each molecule.

        Args:
            sample_or_batch: With ORIGINAL (not rescaled) `coeffs`.

        Returns:
            (n_molecules,) in `output_dtype` [hartree], differentiable twice with respect to `coeffs`.

        Raises:
            BatchError: If a batch lacks `coeffs_batch`.
            NormalizationError: If the sample lacks a field, or its coefficients have the wrong length.
        """
        return self.as_output(self.compute_energy(sample_or_batch), sample_or_batch["coeffs"])

    forward = sample_forward

    def compute_energy(self, sample_or_batch: Data) -> Tensor:
        """Returns E_ref, (n_molecules,) float64 [hartree]."""
        coeffs, atom_ind = require_field("coeffs", sample_or_batch), require_field("atom_ind", sample_or_batch)
        index = get_function_index("coeffs", coeffs, sample_or_batch)
        linear = coeffs.to(torch.float64) * self.find_gradient(index)
        energy = linear.new_zeros(count_molecules(sample_or_batch))
        energy = energy.index_add(0, find_molecule_index(sample_or_batch), linear)
        return energy.index_add(0, find_molecule_index(sample_or_batch, "pos"), self.t_z[atom_ind]) + self.t_global

    def find_gradient(self, basis_function_ind: Tensor) -> Tensor:
        """Returns gbar of each basis function, (n_basis,) float64 [hartree]."""
        return self.g_z.index_select(0, basis_function_ind)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, metadata: Any, *args: Any) -> None:
        if prefix + "t_global" not in state_dict and "t_global" not in metadata:
            message = "the state dict of an AtomRef has no t_global (STRUCTURES25 stores none): %s hartree stays"
            logger.warning(message, float(self.t_global))
            state_dict[prefix + "t_global"] = self.t_global
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)
