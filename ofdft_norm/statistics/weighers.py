"""Sample weighers: functions that give every sample of a batch a weight >= 0."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.identity import identify
from ofdft_norm.data.sample import count_molecules, find_molecule_index, get_field, name_sample
from ofdft_norm.errors import BatchError, StatisticsError
from ofdft_norm.settings import LARGEST_SCALE, SMALLEST_SCALE

_RANGE = f"0, or {SMALLEST_SCALE:g} ... {LARGEST_SCALE:g}"  # allowed weights: sums of their squares are finite
_CONFIG = "(config: data.statistics.weighers)"
_SAME = 1e-11  # coefficients that differ by less than this fraction of the largest one are the same density


class SampleWeigher(ABC):
    """Gives each sample a weight; `summary_string()` is the key of its statistics.

    Subclasses implement `get_weights`, and `summary_string` or `key`. Objects of other classes with both methods, such
    as STRUCTURES25's weighers, are weighers as well. Weighers multiply: ``a * b`` gives each sample the product of both
    weights and joins the keys with ``_times_``.

    Attributes:
        fields: The fields of samples that `get_weights` reads; a fit reads no others. None: not known, all are read.
        key: Result of `summary_string`.
    """

    fields: tuple[str, ...] | None = None
    key: str

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        methods = cls is SampleWeigher and hasattr(other, "get_weights") and hasattr(other, "summary_string")
        return methods or NotImplemented

    @abstractmethod
    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights >= 0 of a batch's (or a single sample's) samples.

        Args:
            batch: A batch, or a single sample.
        """

    def summary_string(self) -> str:
        """Returns the key of this weigher's statistics."""
        return self.key

    def __mul__(self, other: SampleWeigher) -> ProductSampleWeigher:
        return ProductSampleWeigher(self, other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary_string()!r})"

    def _require_field(self, batch: Data, name: str) -> Any:
        value = get_field(batch, name)
        if value is None:
            what = f"the weigher {self.summary_string()!r} needs the field {name!r}, which the sample lacks"
            raise BatchError(f"{what}: choose another weigher {_CONFIG}")
        return value


class ConstantSampleWeigher(SampleWeigher):
    """The same weight for every sample. Key: ``constant``, or ``constant_2`` for weight 2.

    Args:
        weight: Finite and at least 0.

    Raises:
        StatisticsError: If the weight is out of range.
    """

    fields = ()

    def __init__(self, weight: float = 1) -> None:
        number = isinstance(weight, Real) and not isinstance(weight, bool)
        if not (number and (weight == 0 or SMALLEST_SCALE <= weight <= LARGEST_SCALE)):
            raise StatisticsError(f"ConstantSampleWeigher: weight = {weight!r}, expected {_RANGE} {_CONFIG}")
        self.weight = weight
        # six digits, as in STRUCTURES25's names; more if six digits do not restore the weight
        names = (f"{weight:.{digits}g}" for digits in range(6, 18))
        self.key = "constant" if weight == 1 else f"constant_{next(n for n in names if float(n) == weight)}"

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return torch.full((count_molecules(batch),), float(self.weight), dtype=torch.float64)


class HasEnergyLabelSampleWeigher(SampleWeigher):
    """Weight 1 for samples with usable energy and gradient labels, else 0. Key: ``has_energy_label``."""

    fields = ("has_energy_label",)
    key = "has_energy_label"

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return self._require_field(batch, "has_energy_label").to(torch.float64)


class FieldSampleWeigher(SampleWeigher):
    """The weight is a field of the sample. Key: ``field_<name>``.

    Args:
        field: Name of the field, with one number for each sample.
    """

    def __init__(self, field: str) -> None:
        self.field = field
        self.fields = (field,)
        self.key = f"field_{field}"

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return torch.as_tensor(self._require_field(batch, self.field)).reshape(-1).to(torch.float64)


class MinSCFIterationSampleWeigher(SampleWeigher):
    """Weight 1 from SCF iteration `min_scf_iteration` on (0 is the initial guess). Key: ``min_scf_iteration_3``.

    Args:
        min_scf_iteration: First iteration that counts.
    """

    fields = ("scf_iteration",)

    def __init__(self, min_scf_iteration: int) -> None:
        self.min_scf_iteration = int(min_scf_iteration)
        self.key = f"min_scf_iteration_{self.min_scf_iteration}"

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return (self._require_field(batch, "scf_iteration") >= self.min_scf_iteration).to(torch.float64)


class InitialGuessOnlySampleWeigher(SampleWeigher):
    """Weight 1 for SCF iteration 0, else 0. Key: ``initial_guess_only``."""

    fields = ("scf_iteration",)
    key = "initial_guess_only"

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return (self._require_field(batch, "scf_iteration") == 0).to(torch.float64)


class GroundStateOnlySampleWeigher(SampleWeigher):
    """Weight 1 for the converged density (`coeffs` is `ground_state_coeffs`, to rounding), else 0.

    Key: ``ground_state_only``.
    """

    fields: tuple[str, ...] = ("coeffs", "ground_state_coeffs")
    key = "ground_state_only"

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        coeffs, ground_state = (self._require_field(batch, name).detach() for name in self.fields)
        same = max(_SAME, 4 * torch.finfo(coeffs.dtype).eps)
        coeffs, ground_state = (values.to("cpu", torch.float64).numpy() for values in (coeffs, ground_state))
        first = np.searchsorted(find_molecule_index(batch).cpu().numpy(), np.arange(count_molecules(batch)))
        distance, size = (np.maximum.reduceat(np.abs(x), first) for x in (coeffs - ground_state, ground_state))
        # a change of basis rounds equal coefficients differently
        return torch.from_numpy(distance <= same * size).to(torch.float64)


class ProductSampleWeigher(SampleWeigher):
    """The product of the weights of several weighers. Key: their keys, joined with ``_times_``.

    Args:
        weighers: The weighers, one or more.

    Raises:
        StatisticsError: If there is no weigher.
    """

    def __init__(self, *weighers: SampleWeigher) -> None:
        if not weighers:
            raise StatisticsError("ProductSampleWeigher needs at least one weigher")
        self.weighers = weighers
        known = [getattr(weigher, "fields", None) for weigher in weighers]  # other packages' weighers lack it
        self.fields = None if None in known else tuple(name for fields in known for name in fields or ())
        self.key = "_times_".join(weigher.summary_string() for weigher in weighers)

    def get_weights(self, batch: Data) -> Tensor:
        """Returns (n_samples,) float64 weights."""
        return torch.stack([weigher.get_weights(batch) for weigher in self.weighers]).prod(dim=0)


def check_keys(weighers: Sequence[SampleWeigher]) -> None:
    """Refuses different weighers of one key; equal ones may occur several times."""
    for a, b in itertools.combinations(weighers, 2):
        equal = a is b or (identify(a) is not None and identify(a) == identify(b))
        if a.summary_string() == b.summary_string() and not equal:
            what = f"a {type(a).__name__} and a {type(b).__name__}, have the key {a.summary_string()!r}"
            raise StatisticsError(f"two different weighers, {what}: give one of them another key {_CONFIG}")


def weigh_samples(weighers: Sequence[SampleWeigher], batch: Data) -> Tensor:
    """Returns the (K, S) float64 weights of K weighers for the S samples of a batch; refuses weights out of range."""
    n_samples = count_molecules(batch)
    weights = torch.empty(len(weighers), n_samples, dtype=torch.float64)
    for row, weigher in zip(weights, weighers, strict=True):
        values = weigher.get_weights(batch)
        if not isinstance(values, Tensor) or values.shape != (n_samples,) or values.is_complex():
            given = f"{values.dtype} of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values)
            what = f"the weigher {weigher.summary_string()!r} gave {given} for {n_samples} samples"
            raise StatisticsError(f"{what}; get_weights must return a tensor with one weight for each {_CONFIG}")
        row.copy_(values)
    bad = ~((weights == 0) | ((weights >= SMALLEST_SCALE) & (weights <= LARGEST_SCALE)))
    if bad.any():
        k, sample = bad.nonzero()[0].tolist()
        gave = f"gave sample {sample} (molecule {name_sample(batch, sample)!r}) the weight {float(weights[k, sample])}"
        raise StatisticsError(f"the weigher {weighers[k].summary_string()!r} {gave}; expected {_RANGE} {_CONFIG}")
    return weights


def find_labelled(batch: Data, required: bool = True) -> Tensor:
    """Returns (S,) bool: whether the energy and gradient labels of each sample may be used."""
    flags = get_field(batch, "has_energy_label")
    if flags is None and required:
        raise BatchError("the sample lacks the field 'has_energy_label', which states whether its labels may be used")
    return torch.ones(count_molecules(batch), dtype=torch.bool) if flags is None else flags.cpu().reshape(-1) != 0
