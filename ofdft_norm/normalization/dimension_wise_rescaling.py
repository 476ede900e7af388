"""Dimension-wise rescaling of density coefficients and gradients ([M-OFDFT] section 4.3, eq. 4)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.sample import VECTORS
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.normalization.base import (
    Affine,
    Float64Module,
    OutputDtype,
    check_basis,
    get_function_index,
    require_field,
)
from ofdft_norm.settings import LARGEST_SCALE, SMALLEST_SCALE, NonNegative, Scale, Settings
from ofdft_norm.statistics.references import make_reference_gradient
from ofdft_norm.statistics.store import Array, DatasetStatistics, WeigherStatistics

# values of [M-OFDFT] and [STR25]
S_COEFF = 50.0
S_GRAD = 0.05  # hartree
EPSILON = 1e-8


class RescalingConfig(Settings):
    """Dimension-wise rescaling of coefficients and gradients (`DimensionWiseRescaling`).

    Attributes:
        equivariant: One scale for all components of a shell, no bias for l > 0.
        s_coeff: Maximal scale of the rescaled coefficients.
        s_grad: Target scale of the rescaled gradients [hartree].
        epsilon: Added to lambda where gradients are divided.
    """

    equivariant: bool = False
    s_coeff: Scale = S_COEFF
    s_grad: Scale = S_GRAD
    epsilon: NonNegative = EPSILON
    config_key = "data.rescaling"


class DimensionWiseRescaling(Float64Module):
    """Centres and rescales coefficients per element and dimension; gradients are scaled inversely.

    p' = lambda (p - pbar);  g' = g / (lambda + epsilon), with

        lambda = min(max_grad / s_grad, s_coeff / std)  if max_grad > s_grad, else 1

    ([M-OFDFT] eq. 4). If std is 0, the coefficient scale sets no limit: lambda = max_grad / s_grad. The inverses
    use the same factors, so a round trip is exact to float64 rounding.

    Args:
        coeff_biases: (n_basis,) mean coefficients pbar, concatenated over elements.
        coeff_stds: (n_basis,) standard deviations of the coefficients.
        max_grads: (n_basis,) largest gradients [hartree].
        s_coeff: Maximal scale of rescaled coefficients.
        s_grad: Target scale of rescaled gradients [hartree].
        epsilon: Added to lambda where gradients are divided.
        output_dtype: Dtype of all results: ``float64`` (default); ``input``, the dtype of the argument, for a layer of
            a float32 network, where float64 would raise "mat1 and mat2 must have the same dtype"; or a torch.dtype.
            All results are computed in float64.

    Raises:
        ConfigError: If `s_coeff` or `s_grad` is not positive, `epsilon` is negative, or `output_dtype` is unknown.
        StatisticsError: If the statistics differ in length, are not finite, or are negative scales.
    """

    coeff_biases: Tensor
    coeff_stds: Tensor
    max_grads: Tensor
    lambda_z: Tensor

    def __init__(
        self,
        coeff_biases: Tensor | Array,
        coeff_stds: Tensor | Array,
        max_grads: Tensor | Array,
        s_coeff: float = S_COEFF,
        s_grad: float = S_GRAD,
        epsilon: float = EPSILON,
        output_dtype: OutputDtype = "float64",
    ) -> None:
        super().__init__()
        limits = {"s_coeff": (s_coeff, SMALLEST_SCALE), "s_grad": (s_grad, SMALLEST_SCALE), "epsilon": (epsilon, 0.0)}
        for name, (value, smallest) in limits.items():
            if np.iscomplexobj(value) or not smallest <= float(value) <= LARGEST_SCALE:
                expected = f"expected a number, {smallest:g} ... {LARGEST_SCALE:g}"
                raise ConfigError(f"data.rescaling.{name} = {value}: {expected}")
        self.s_coeff, self.s_grad, self.epsilon = float(s_coeff), float(s_grad), float(epsilon)
        self.set_output_dtype(output_dtype)
        for name, given in (("coeff_biases", coeff_biases), ("coeff_stds", coeff_stds), ("max_grads", max_grads)):
            self.register_float64(name, given)
            values = getattr(self, name)
            if values.ndim != 1 or values.shape != self.coeff_biases.shape:
                raise StatisticsError(f"{name} has shape {tuple(values.shape)}, expected that of coeff_biases, (n,)")
            bad = (~torch.isfinite(values) | ((values < 0) & (name != "coeff_biases"))).nonzero()
            if len(bad):
                found = f"{name}[{int(bad[0])}] is {float(values[bad[0]])}"
                raise StatisticsError(f"{found}, expected a finite scale or mean (config: data.statistics.path)")
        self.register_float64("lambda_z", torch.ones_like(self.coeff_biases))
        self.init_lambda_z()

    def init_lambda_z(self) -> None:
        """Computes `lambda_z` from the statistics ([M-OFDFT] eq. 4)."""
        # a standard deviation of 0 sets no limit: s_coeff / 0 is infinite
        rescaled = torch.minimum(self.max_grads / self.s_grad, self.s_coeff / self.coeff_stds)
        self.lambda_z.copy_(torch.where(self.max_grads > self.s_grad, rescaled, 1.0))

    def branches(self) -> dict[str, Tensor]:
        """Returns for each limit of lambda the (n_basis,) mask of the dimensions that it sets.

        ``gradient`` and ``coefficient`` are the two terms of the minimum; ``unscaled`` dimensions have lambda = 1.
        """
        rescaled = self.max_grads > self.s_grad
        by_gradient = rescaled & (self.max_grads * self.coeff_stds <= self.s_coeff * self.s_grad)
        return {"gradient": by_gradient, "coefficient": rescaled & ~by_gradient, "unscaled": ~rescaled}

    def make_affines(self, index: Tensor) -> dict[str, Affine]:
        """Returns how each field of some basis functions is rescaled; w' = w / lambda, so that w'.p' + w.pbar = w.p."""
        # index_select is several times faster than indexing
        bias, lambdas = self.coeff_biases.index_select(0, index), self.lambda_z.index_select(0, index)
        duals = {"gradient_label": Affine(None, lambdas + self.epsilon), "dual_basis_integrals": Affine(None, lambdas)}
        return dict.fromkeys(VECTORS, Affine(bias, lambdas.reciprocal())) | duals

    # --- samples and batches --------------------------------------------------------------------------------------

    def forward(self, data_sample: Data) -> Tensor:
        """Returns the shifted and rescaled coefficients, as `rescale_coeffs_and_gradient`."""
        return self.scale_coeffs(require_field("coeffs", data_sample), data_sample)

    def rescale_coeffs_and_gradient(self, data_sample: Data) -> tuple[Tensor, Tensor]:
        """Returns the rescaled coefficients and gradient label of a sample or batch.

        Args:
            data_sample: A raw sample or batch.

        Returns:
            Coefficients and gradient, both (n_basis,) in `output_dtype`; differentiable.

        Raises:
            NormalizationError: If the sample lacks a field, or has one of the wrong length.
        """
        gradient = require_field("gradient_label", data_sample)
        return self.forward(data_sample), self.scale_gradient(gradient, data_sample)

    def scale_coeffs(self, coeffs: Tensor, sample: Data) -> Tensor:
        """Returns p' = lambda (p - pbar), the inverse of `unscale_coeffs`."""
        return self._map("coeffs", coeffs, sample, Affine.normalize)

    def unscale_coeffs(self, coeffs: Tensor, sample: Data) -> Tensor:
        """Returns p = p' / lambda + pbar.

        Args:
            coeffs: (n_basis,) rescaled coefficients p'.
            sample: The sample or batch that they belong to.

        Returns:
            (n_basis,) in `output_dtype`.

        Raises:
            NormalizationError: If the coefficients are not one for each basis function of the sample.
        """
        return self._map("coeffs", coeffs, sample, Affine.denormalize)

    def scale_gradient(self, gradient: Tensor, sample: Data) -> Tensor:
        """Returns g' = g / (lambda + epsilon), the inverse of `unscale_gradient`."""
        return self._map("gradient_label", gradient, sample, Affine.normalize)

    def unscale_gradient(self, gradient: Tensor, sample: Data) -> Tensor:
        """Returns g = (lambda + epsilon) g' [hartree]; arguments and result as in `unscale_coeffs`."""
        return self._map("gradient_label", gradient, sample, Affine.denormalize)

    def _map(self, field: str, values: Tensor, sample: Data, function: Callable[[Affine, Tensor], Tensor]) -> Tensor:
        affine = self.make_affines(get_function_index(field, values, sample))[field]
        return self.as_output(function(affine, values), values)

    # --- statistics -----------------------------------------------------------------------------------------------

    @classmethod
    def from_dataset_statistics(
        cls,
        dataset_statistics: DatasetStatistics,
        basis_info: BasisInfo | None = None,
        weigher_key: str = "has_energy_label",
        equivariant: bool = False,
        s_coeff: float = S_COEFF,
        s_grad: float = S_GRAD,
        epsilon: float = EPSILON,
        output_dtype: OutputDtype = "float64",
    ) -> DimensionWiseRescaling:
        """Takes biases, standard deviations and largest gradients from dataset statistics.

        Args:
            dataset_statistics: The statistics.
            basis_info: The basis; required if `equivariant`.
            weigher_key: Key of the weigher of these statistics.
            equivariant: Use one scale for all components of a shell and no bias for l > 0, so that rescaling commutes
                with rotations of the molecule.
            s_coeff: See the class.
            s_grad: See the class.
            epsilon: See the class.
            output_dtype: ``float64`` or ``input``, see the class.

        Raises:
            StatisticsError: If a statistic is missing or does not fit the basis.
            ConfigError: If `equivariant` is set without a basis.
        """
        reference = "scalar_atom_ref" if equivariant else "atom_ref"
        names = ("coeffs/mean", "coeffs/std", f"gradient_max_after_{reference}")
        biases, stds, max_grads = map(partial(dataset_statistics.load_statistic, weigher_key), names)
        basis_info = check_basis(dataset_statistics, basis_info, len(biases))
        if equivariant:
            if basis_info is None:
                raise ConfigError("equivariant=True needs basis_info, which defines the shells")
            shell = basis_info.basis_func_to_shell
            first = np.unique(shell, return_index=True)[1]
            biases = np.where(basis_info.l_per_basis_func == 0, biases, 0.0)
            stds = np.sqrt(np.add.reduceat(np.square(stds), first))[shell]
            max_grads = np.maximum.reduceat(max_grads, first)[shell]
        return cls(biases, stds, max_grads, s_coeff, s_grad, epsilon, output_dtype)

    @classmethod
    def apply_to_dataset_statistics(
        cls, dataset_statistics: DatasetStatistics, output_path: str | Path | None, weigher_key: str, **kwargs: Any
    ) -> DatasetStatistics:
        """Computes the statistics of the rescaled data set.

        The atomic references are those of the new coefficients: gbar' = gbar / (lambda + epsilon), and since
        gbar.p = gbar.pbar + (gbar / lambda).p', the energy of each element increases by its gbar.pbar. Residual
        energies stay as they are (to epsilon). If the compositions are rank deficient, the elements' energies are
        one of the equivalent solutions, not the one of minimum norm that a new fit would choose.

        Args:
            dataset_statistics: Statistics to transform, for all their weighers; also the rescaling's parameters.
            output_path: Where to write the new statistics; None: keep them in memory.
            weigher_key: Key of the weigher of the statistics that define the rescaling.
            **kwargs: Arguments of `from_dataset_statistics`.

        Returns:
            The transformed statistics.

        Raises:
            StatisticsError: If neither the statistics nor the arguments have a basis.
        """
        rescaling = cls.from_dataset_statistics(dataset_statistics, weigher_key=weigher_key, **kwargs)
        basis = kwargs.get("basis_info") or dataset_statistics.basis_info
        if basis is None:
            raise StatisticsError(f"{dataset_statistics.path or 'the statistics'}: have no basis: pass basis_info")
        scale, pbar = (buffer.cpu().numpy() for buffer in (rescaling.lambda_z, rescaling.coeff_biases))
        new: dict[str, Any] = {}
        for key in dataset_statistics.keys_recursive():
            weigher, (folder, _, name) = dataset_statistics[key.split("/")[0]], key.rpartition("/")
            folder, value = folder.partition("/")[2], dataset_statistics.load_statistic(*key.split("/", 1))
            if folder in ("coeffs", "coeffs_range") and name in ("mean", "minimum", "maximum"):
                value = scale * (value - np.where(_is_seen(weigher, folder, basis), pbar, 0.0))
            elif (folder, name) == ("coeffs", "std") or folder == "initial_guess_delta":  # pbar cancels in differences
                value = scale * value
            elif folder == "gradient_label" or name.startswith("gradient_max_after_"):
                value = value / (scale + rescaling.epsilon)
            elif name in ("atom_ref_atom_type_bias", "scalar_atom_ref_atom_type_bias"):
                gbar = weigher.load("gradient_label/mean")
                linear = make_reference_gradient(name.removesuffix("_atom_type_bias"), gbar, basis) * pbar
                value = value + np.array([linear[i].sum() for i in basis.atom_ind_to_basis_function_ind])
            elif folder.startswith("energy_minus_") and name == "std":
                # STRUCTURES25 stores the uncentred value under std; a stored rms marks std as centred
                new[f"{weigher.key}/{folder}/rms"] = weigher.load(f"{folder}/rms")
            new[key] = value
        for key in dataset_statistics.weigher_keys():
            largest, lowest, highest = (f"{key}/coeffs/{name}" for name in ("abs_max", "minimum", "maximum"))
            if new.pop(largest, None) is None:
                continue
            if lowest in new and highest in new:
                new[largest] = np.maximum(np.abs(new[lowest]), np.abs(new[highest]))
            else:
                warnings.warn(f"{largest!r} cannot be transformed without minimum and maximum: left out", stacklevel=2)
        attributes = {**dataset_statistics.attributes, "rescaled_by": repr(rescaling)}
        transformed = DatasetStatistics.from_arrays(new, attributes)
        if output_path is not None:
            transformed.save_to(output_path)
        return transformed

    def extra_repr(self) -> str:
        """Shows the parameters in the module's repr."""
        return f"n_basis={len(self.lambda_z)}, s_coeff={self.s_coeff}, s_grad={self.s_grad}, epsilon={self.epsilon}"


def _is_seen(weigher: WeigherStatistics, folder: str, basis: BasisInfo) -> Array:
    """Returns which entries belong to elements with atoms; `coeffs_range` has those of all samples."""
    low, high = (weigher.get(f"coeffs_range/{limit}") for limit in ("minimum", "maximum"))
    if folder == "coeffs_range" and low is not None and high is not None:
        return (low != 0) | (high != 0)
    n_atoms = np.ones(basis.n_types) if weigher.n_atoms is None else weigher.n_atoms
    return np.repeat(n_atoms > 0, basis.basis_dim_per_atom)
