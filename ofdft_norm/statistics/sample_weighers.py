"""Sample weighers: functions that give every sample of a batch a weight >= 0."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.of_data import get_field, molecule_index, n_molecules, sample_name
from ofdft_norm.errors import BatchError, StatisticsError
from ofdft_norm.settings import LARGEST_SCALE, SMALLEST_SCALE


class SampleWeigher:
    """Gives each sample a weight; `summary_string()` is the key under which its statistics are stored.

    Subclasses implement `get_weights` and `summary_string`. Weighers multiply: ``a * b`` gives each sample the
    product of both weights and joins the keys with ``_times_``.

    Attributes:
        fields: The fields of samples that `get_weights` reads, so that a fit joins no others; None: not known, all are
            joined.
    """

    fields: tuple[str, ...] | None = None

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights >= 0 of a batch's (or a single sample's) samples.

        Args:
            batch: A batch, or a single sample.
        """
        raise TypeError(f"{type(self).__name__} does not define get_weights")

    def summary_string(self) -> str:
        """Returns the key of this weigher's statistics."""
        raise TypeError(f"{type(self).__name__} does not define summary_string")

    def __mul__(self, other: SampleWeigher) -> ProductSampleWeigher:
        return ProductSampleWeigher(self, other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary_string()!r})"


class ConstantSampleWeigher(SampleWeigher):
    """The same weight for every sample. Key: ``constant``, or ``constant_2`` for weight 2 (all digits of others).

    Args:
        weight: Finite and at least 0.
    """

    fields = ()

    def __init__(self, weight: float = 1) -> None:
        number = isinstance(weight, Real) and not isinstance(weight, bool)
        if not number or not (weight == 0 or SMALLEST_SCALE <= weight <= LARGEST_SCALE):
            raise StatisticsError(
                f"ConstantSampleWeigher: weight = {weight!r}, expected 0 or a number of {SMALLEST_SCALE:g} ... "
                f"{LARGEST_SCALE:g} (config: data.statistics.weighers)"
            )
        self.weight = weight

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return torch.full((n_molecules(batch),), float(self.weight), dtype=torch.float64)

    def summary_string(self) -> str:
        """Returns the key of this weigher's statistics."""
        # six digits, as STRUCTURES25 names it, or as many as tell the weight from every other
        names = (f"{self.weight:.{digits}g}" for digits in range(6, 18))
        return "constant" if self.weight == 1 else f"constant_{next(n for n in names if float(n) == self.weight)}"


class HasEnergyLabelSampleWeigher(SampleWeigher):
    """Weight 1 for samples whose energy and gradient labels may be used, else 0. Key: ``has_energy_label``."""

    fields = ("has_energy_label",)

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return _field(batch, "has_energy_label", self).to(torch.float64)

    def summary_string(self) -> str:
        """Returns the key of this weigher's statistics."""
        return "has_energy_label"


class FieldSampleWeigher(SampleWeigher):
    """The weight that each sample has in a field. Key: ``field_<name>``.

    Args:
        field: Name of the field, with one number for each sample.
    """

    def __init__(self, field: str) -> None:
        self.field = field
        self.fields = (field,)

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return torch.as_tensor(_field(batch, self.field, self)).reshape(-1).to(torch.float64)

    def summary_string(self) -> str:
        """Returns the key of this weigher's statistics."""
        return f"field_{self.field}"


class MinSCFIterationSampleWeigher(SampleWeigher):
    """Weight 1 from SCF iteration `min_scf_iteration` on (0 is the initial guess). Key: ``min_scf_iteration_3``.

    Args:
        min_scf_iteration: First iteration that counts.
    """

    fields = ("scf_iteration",)

    def __init__(self, min_scf_iteration: int) -> None:
        self.min_scf_iteration = int(min_scf_iteration)

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return (_field(batch, "scf_iteration", self) >= self.min_scf_iteration).to(torch.float64)

    def summary_string(self) -> str:
        """Returns the key of this weigher's statistics."""
        return f"min_scf_iteration_{self.min_scf_iteration}"


class InitialGuessOnlySampleWeigher(SampleWeigher):
    """Weight 1 for SCF iteration 0, else 0. Key: ``initial_guess_only``."""

    fields = ("scf_iteration",)

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return (_field(batch, "scf_iteration", self) == 0).to(torch.float64)

    def summary_string(self) -> str:
        """Returns the key of this weigher's statistics."""
        return "initial_guess_only"


class GroundStateOnlySampleWeigher(SampleWeigher):
    """Weight 1 for the converged density (`coeffs` is `ground_state_coeffs`), else 0. Key: ``ground_state_only``."""

    fields = ("coeffs", "ground_state_coeffs")

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        differs = _field(batch, "coeffs", self) != _field(batch, "ground_state_coeffs", self)
        index = molecule_index(batch)
        first = torch.searchsorted(index, torch.arange(n_molecules(batch), device=index.device))
        # stops at the first difference within each sample: a hundred times faster than counting them all
        changed = np.logical_or.reduceat(differs.cpu().numpy(), first.cpu().numpy())
        return torch.from_numpy(~changed).to(torch.float64)

    def summary_string(self) -> str:
        """Returns the key of this weigher's statistics."""
        return "ground_state_only"


class ProductSampleWeigher(SampleWeigher):
    """The product of several weighers' weights. Key: theirs, joined with ``_times_``.

    Args:
        weighers: The weighers, one or more.
    """

    def __init__(self, *weighers: SampleWeigher) -> None:
        if not weighers:
            raise StatisticsError("ProductSampleWeigher needs at least one weigher")
        self.weighers = weighers
        known = [weigher.fields for weigher in weighers]
        self.fields = None if None in known else tuple(name for fields in known for name in fields or ())

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return torch.stack([weigher.get_weights(batch) for weigher in self.weighers]).prod(dim=0)

    def summary_string(self) -> str:
        """Returns the key of this weigher's statistics."""
        return "_times_".join(weigher.summary_string() for weigher in self.weighers)


def _field(batch: Data, name: str, weigher: SampleWeigher) -> Tensor:
    value = get_field(batch, name)
    if value is None:
        raise BatchError(
            f"the weigher {weigher.summary_string()!r} needs the field {name!r}, which the sample lacks; give it to "
            "OFData.construct_new or choose another weigher (config: data.statistics.weighers)"
        )
    return value


def check_keys(weighers: Sequence[SampleWeigher]) -> None:
    """Refuses different weighers of one key, whose statistics would overwrite each other.

    Args:
        weighers: All weighers of a fit; equal ones may occur several times.

    Raises:
        StatisticsError: With the key.
    """
    by_key: dict[str, SampleWeigher] = {}
    for weigher in weighers:
        key = weigher.summary_string()
        if not _are_equal(by_key.setdefault(key, weigher), weigher):
            raise StatisticsError(
                f"two different weighers, a {type(by_key[key]).__name__} and a {type(weigher).__name__}, have the "
                f"key {key!r}, under which the statistics of one only can be stored: give one of them another "
                "summary_string() (config: data.statistics.weighers)"
            )


def _are_equal(a: SampleWeigher, b: SampleWeigher) -> bool:
    if a is b:
        return True
    if isinstance(a, ProductSampleWeigher) and isinstance(b, ProductSampleWeigher):
        return len(a.weighers) == len(b.weighers) and all(map(_are_equal, a.weighers, b.weighers))
    return type(a) is type(b) and vars(a) == vars(b)


def sample_weights(weighers: Sequence[SampleWeigher], batch: Data) -> Tensor:
    """Returns the weights of all weighers, checked.

    Args:
        weighers: K weighers.
        batch: A batch of S samples.

    Returns:
        (K, S) float64.

    Raises:
        StatisticsError: If a weigher gives a weight that is negative, not a number, or so large or small that sums of
            squares overflow or vanish, or not one weight for each sample.
    """
    n_samples = n_molecules(batch)
    weights = torch.empty(len(weighers), n_samples, dtype=torch.float64)
    for row, weigher in zip(weights, weighers, strict=True):
        values = weigher.get_weights(batch)
        if not isinstance(values, Tensor) or values.shape != (n_samples,) or values.is_complex():
            given = f"{values.dtype} of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values)
            raise StatisticsError(
                f"the weigher {weigher.summary_string()!r} gave {given} for {n_samples} samples; get_weights must "
                "return a tensor with one weight for each (config: data.statistics.weighers)"
            )
        row.copy_(values)
    bad = ~((weights == 0) | ((weights >= SMALLEST_SCALE) & (weights <= LARGEST_SCALE)))
    if bad.any():
        k, sample = bad.nonzero()[0].tolist()
        raise StatisticsError(
            f"the weigher {weighers[k].summary_string()!r} gave sample {sample} "
            f"(molecule {sample_name(batch, sample)!r}) the weight {float(weights[k, sample])}; "
            f"expected 0, or {SMALLEST_SCALE:g} ... {LARGEST_SCALE:g} (config: data.statistics.weighers)"
        )
    return weights


def labelled_weights(weighers: Sequence[SampleWeigher], batch: Data) -> Tensor:
    """Returns the same weights, 0 where a sample's energy and gradient labels may not be used.

    Args:
        weighers: What each sample counts.
        batch: Samples that say which of them are labelled.

    Raises:
        StatisticsError: As `sample_weights`.
        BatchError: If the samples lack `has_energy_label`.
    """
    return sample_weights(weighers, batch) * has_label(batch)


def has_label(batch: Data, required: bool = True) -> Tensor:
    """Returns (S,) float64: 1 where a sample's energy and gradient labels may be used.

    Args:
        batch: A batch of S samples.
        required: Whether samples without `has_energy_label` are refused; if not, they all have labels.

    Raises:
        BatchError: If the samples lack `has_energy_label`, and it is required.
    """
    flags = get_field(batch, "has_energy_label")
    if flags is None and required:
        raise BatchError("the sample lacks the field 'has_energy_label', which says whether its labels may be used")
    return torch.ones(n_molecules(batch), dtype=torch.float64) if flags is None else flags.cpu().to(torch.float64)
