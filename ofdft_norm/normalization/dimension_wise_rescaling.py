"""Dimension-wise rescaling of density coefficients and gradients ([M-OFDFT] section 4.3, eq. 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.errors import ConfigError, StatisticsError
from ofdft_norm.normalization.affine import Affine
from ofdft_norm.normalization.float64_module import Float64Module
from ofdft_norm.normalization.guards import check_vector, require_field
from ofdft_norm.settings import LARGEST_SCALE, SMALLEST_SCALE, NonNegative, Scale, Settings
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics

Array = npt.NDArray[np.float64]
OutputDtype = torch.dtype | Literal["input"]

# the values of [M-OFDFT] and [STR25]
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


class RescalingFactors(NamedTuple):
    """The formulas of the rescaling, for all functions of the basis or for those of a sample.

    Attributes:
        bias: pbar.
        scale: lambda.
        epsilon: Added to lambda where gradients are divided.
    """

    bias: Tensor
    scale: Tensor
    epsilon: float

    def at(self, index: Tensor) -> RescalingFactors:
        """Returns the factors of given functions, in their order.

        Args:
            index: (n,) indices into the factors.
        """
        # several times faster than indexing by a tensor
        return RescalingFactors(self.bias.index_select(0, index), self.scale.index_select(0, index), self.epsilon)

    @property
    def coeffs(self) -> Affine:
        """How coefficients transform: p' = lambda (p - pbar)."""
        return Affine(self.bias, self.scale.reciprocal())

    @property
    def gradient_unit(self) -> Tensor:
        """Lambda + epsilon: what gradients are divided by."""
        return self.scale + self.epsilon

    @property
    def gradient(self) -> Affine:
        """How gradients transform: g' = g / (lambda + epsilon)."""
        return Affine(unit=self.gradient_unit)

    @property
    def integrals(self) -> Affine:
        """How basis functions' integrals transform: w' = w / lambda, so that w'.p' + w.pbar = w.p."""
        return Affine(unit=self.scale)


class DimensionWiseRescaling(Float64Module):
    """Centres and rescales coefficients per element and dimension; gradients are scaled inversely.

    p' = lambda (p - pbar);  g' = g / (lambda + epsilon), with

        lambda = min(max_grad / s_grad, s_coeff / std)  if max_grad > s_grad, else 1

    ([M-OFDFT] eq. 4). Where std is 0 the coefficient scale sets no limit: lambda = max_grad / s_grad. The inverses
    use the same factors, so a round trip is exact to float64 rounding.

    Args:
        coeff_biases: (n_basis,) mean coefficients pbar, concatenated over elements.
        coeff_stds: (n_basis,) standard deviations of the coefficients.
        max_grads: (n_basis,) largest gradients [hartree].
        s_coeff: Maximal scale of rescaled coefficients.
        s_grad: Target scale of rescaled gradients [hartree].
        epsilon: Added to lambda where gradients are divided.
        output_dtype: Of rescaled coefficients and gradients: float64 by default; ``"input"``: that of what is rescaled,
            for a module inside a float32 network. All is computed in float64, and the inverses return it.

    Raises:
        ConfigError: If `s_coeff` or `s_grad` is not positive, or `epsilon` is negative.
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
        output_dtype: OutputDtype = torch.float64,
    ) -> None:
        super().__init__()
        for name, value in (("s_coeff", s_coeff), ("s_grad", s_grad), ("epsilon", epsilon)):
            if not SMALLEST_SCALE <= value <= LARGEST_SCALE and not (name == "epsilon" and value == 0):
                raise ConfigError(
                    f"{name} = {value}: expected a positive number, {SMALLEST_SCALE:g} ... {LARGEST_SCALE:g}"
                    + (", or 0" if name == "epsilon" else "")
                    + f" (config: data.rescaling.{name})"
                )
        self.s_coeff = float(s_coeff)
        self.s_grad = float(s_grad)
        self.epsilon = float(epsilon)
        if output_dtype != "input" and not isinstance(output_dtype, torch.dtype):
            raise ConfigError(f"output_dtype = {output_dtype!r}: expected a torch.dtype or 'input'")
        self.output_dtype = output_dtype
        self.register_float64("coeff_biases", coeff_biases)
        self.register_float64("coeff_stds", coeff_stds)
        self.register_float64("max_grads", max_grads)
        self._check_statistics()
        self.register_float64("lambda_z", torch.ones_like(self.coeff_biases))
        self.init_lambda_z()

    def _check_statistics(self) -> None:
        shape = self.coeff_biases.shape
        for name in ("coeff_biases", "coeff_stds", "max_grads"):
            values = getattr(self, name)
            if values.ndim != 1 or values.shape != shape:
                raise StatisticsError(
                    f"{name} has shape {tuple(values.shape)}, expected ({shape[0] if shape else 0},) like coeff_biases"
                )
            bad = ~torch.isfinite(values) if name == "coeff_biases" else ~torch.isfinite(values) | (values < 0)
            if bad.any():
                entry = int(bad.nonzero()[0])
                expected = "a finite number" if name == "coeff_biases" else "a finite scale >= 0"
                raise StatisticsError(
                    f"{name}[{entry}] is {float(values[entry])}, expected {expected}: fit the statistics again, or "
                    "give others (config: data.statistics.path)"
                )

    def init_lambda_z(self) -> None:
        """Computes `lambda_z` from the statistics ([M-OFDFT] eq. 4)."""
        self.lambda_z.copy_(self.lambda_of(self.max_grads))

    def lambda_of(self, max_grads: Tensor) -> Tensor:
        """Returns the (n_basis,) lambda that other largest gradients [hartree] would give.

        Args:
            max_grads: (n_basis,) largest absolute gradients, after the mean gradient is subtracted where it is.
        """
        by_coeff = torch.where(self.coeff_stds > 0, self.s_coeff / self.coeff_stds, torch.inf)
        return torch.where(max_grads > self.s_grad, torch.minimum(max_grads / self.s_grad, by_coeff), 1.0)

    def branches(self) -> dict[str, int]:
        """Returns how many dimensions each branch of lambda decides: `gradient`, `coefficient`, `unscaled`."""
        rescaled = self.max_grads > self.s_grad
        by_gradient = rescaled & (self.max_grads * self.coeff_stds <= self.s_coeff * self.s_grad)
        return {
            "gradient": int(by_gradient.sum()),
            "coefficient": int((rescaled & ~by_gradient).sum()),
            "unscaled": int((~rescaled).sum()),
        }

    @property
    def factors(self) -> RescalingFactors:
        """The formulas, for all functions of the basis; ``factors.at(index)`` are those of a sample's functions."""
        return RescalingFactors(self.coeff_biases, self.lambda_z, self.epsilon)

    # --- samples and batches --------------------------------------------------------------------------------------
    # Each raises a NormalizationError for a sample without `basis_function_ind`, or for values that are not one for
    # each of its basis functions.

    def forward(self, data_sample: Data) -> Tensor:
        """Returns the shifted and rescaled coefficients, (n_basis,) `output_dtype`, of a sample or batch."""
        return self.scale_coeffs(require_field("coeffs", data_sample, "is to be rescaled"), data_sample)

    def rescale_coeffs_and_gradient(self, data_sample: Data) -> tuple[Tensor, Tensor]:
        """Returns the rescaled coefficients and gradient label of a sample or batch, both (n_basis,) `output_dtype`.

        Args:
            data_sample: Raw sample or batch.
        """
        gradient = require_field("gradient_label", data_sample, "is to be rescaled")
        return self.forward(data_sample), self.scale_gradient(gradient, data_sample)

    def _output_dtype(self, values: Tensor) -> torch.dtype:
        return values.dtype if self.output_dtype == "input" else self.output_dtype

    def scale_coeffs(self, coeffs: Tensor, sample: Data) -> Tensor:
        """Returns p' = lambda (p - pbar) for coefficients p of the given sample or batch.

        Args:
            coeffs: (n_basis,) raw coefficients.
            sample: The sample or batch that they belong to.
        """
        affine = self.factors.at(check_vector("coeffs", coeffs, sample)).coeffs
        return affine.normalize(coeffs, self._output_dtype(coeffs))

    def unscale_coeffs(self, coeffs: Tensor, sample: Data) -> Tensor:
        """Inverse of `scale_coeffs`: p = p' / lambda + pbar, (n_basis,) float64.

        Args:
            coeffs: (n_basis,) rescaled coefficients.
            sample: The sample or batch that they belong to.
        """
        return self.factors.at(check_vector("coeffs", coeffs, sample)).coeffs.denormalize(coeffs)

    def scale_gradient(self, gradient: Tensor, sample: Data) -> Tensor:
        """Returns g' = g / (lambda + epsilon) for a gradient of the given sample or batch.

        Args:
            gradient: (n_basis,) raw gradient [hartree].
            sample: The sample or batch that it belongs to.
        """
        affine = self.factors.at(check_vector("gradient", gradient, sample)).gradient
        return affine.normalize(gradient, self._output_dtype(gradient))

    def unscale_gradient(self, gradient: Tensor, sample: Data) -> Tensor:
        """Inverse of `scale_gradient`: g = (lambda + epsilon) g', (n_basis,) float64 [hartree].

        Args:
            gradient: (n_basis,) rescaled gradient.
            sample: The sample or batch that it belongs to.
        """
        return self.factors.at(check_vector("gradient", gradient, sample)).gradient.denormalize(gradient)

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
        output_dtype: OutputDtype = torch.float64,
    ) -> DimensionWiseRescaling:
        """Takes biases, standard deviations and largest gradients from a data set's statistics.

        Args:
            dataset_statistics: The statistics.
            basis_info: The basis; required if `equivariant`.
            weigher_key: Whose statistics to use.
            equivariant: Use one scale for all components of a shell and no bias for l > 0, so that rescaling commutes
                with rotations of the molecule.
            s_coeff: See the class.
            s_grad: See the class.
            epsilon: See the class.
            output_dtype: See the class.

        Raises:
            StatisticsError: If a statistic is missing or does not fit the basis.
            ConfigError: If `equivariant` is set without a basis.
        """
        suffix = "scalar_atom_ref" if equivariant else "atom_ref"
        biases = dataset_statistics.load_statistic(weigher_key, "coeffs/mean")
        stds = dataset_statistics.load_statistic(weigher_key, "coeffs/std")
        max_grads = dataset_statistics.load_statistic(weigher_key, f"gradient_max_after_{suffix}")
        if basis_info is not None and biases.shape != (basis_info.n_basis,):
            raise StatisticsError(
                f"{dataset_statistics.path or 'statistics'}: 'coeffs/mean' has shape {biases.shape}, but the basis has "
                f"{basis_info.n_basis} functions: the statistics belong to another basis (config: "
                "data.statistics.path, data.source.basis_info)"
            )
        if equivariant:
            if basis_info is None:
                raise ConfigError("equivariant=True needs basis_info, which says which functions form a shell")
            biases, stds, max_grads = _constant_within_shells(biases, stds, max_grads, basis_info)
        return cls(biases, stds, max_grads, s_coeff, s_grad, epsilon, output_dtype)

    @classmethod
    def apply_to_dataset_statistics(
        cls, dataset_statistics: DatasetStatistics, output_path: str | Path | None, weigher_key: str, **kwargs: Any
    ) -> DatasetStatistics:
        """Computes what the statistics would be after rescaling the data set.

        The atomic references are those of the new coefficients: gbar' = gbar / (lambda + epsilon), and since
        gbar.p = gbar.pbar + (gbar / lambda).p', each element's energy takes up its share of gbar.pbar. Residual
        energies stay as they are (to epsilon). Where the compositions are rank deficient, the elements' energies are
        one of the equivalent solutions, not the one of minimum norm that a new fit would choose.

        Args:
            dataset_statistics: Statistics to transform, for all their weighers; also the rescaling's parameters.
            output_path: Where the new statistics are written; None keeps them in memory.
            weigher_key: Whose statistics define the rescaling.
            **kwargs: For `from_dataset_statistics`.

        Returns:
            The transformed statistics.
        """
        from ofdft_norm.normalization.transformed_statistics import transform_statistics

        rescaling = cls.from_dataset_statistics(dataset_statistics, weigher_key=weigher_key, **kwargs)
        transformed = transform_statistics(dataset_statistics, rescaling, kwargs.get("basis_info"))
        if output_path is not None:
            transformed.save_to(output_path)
        return transformed

    def extra_repr(self) -> str:
        """Shows the hyper-parameters in the module's repr."""
        return f"n_basis={len(self.lambda_z)}, s_coeff={self.s_coeff}, s_grad={self.s_grad}, epsilon={self.epsilon}"


def _constant_within_shells(
    biases: Array, stds: Array, max_grads: Array, basis_info: BasisInfo
) -> tuple[Array, Array, Array]:
    shell = basis_info.basis_func_to_shell
    n_shells = int(shell.max()) + 1
    largest = np.zeros(n_shells)
    np.maximum.at(largest, shell, max_grads)
    norms = np.sqrt(np.bincount(shell, weights=np.square(stds), minlength=n_shells))
    return np.where(basis_info.l_per_basis_func == 0, biases, 0.0), norms[shell], largest[shell]
