"""Random normalisers, and samples with their statistics, shared by the tests of this folder."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import (
    AtomRef,
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    DimensionWiseRescaling,
    HasEnergyLabelSampleWeigher,
    InitialGuessOnlySampleWeigher,
    LinearReferences,
    Normalizer,
    OFData,
)


def random_normalizer(
    basis: BasisInfo,
    seed: int | np.random.Generator = 0,
    reference: str = "atom_ref",
    rescaling: str = "dimension_wise",
    scale: float = 0.1,
    epsilon: float = 1e-8,
    **options: Any,
) -> Normalizer:
    """A normaliser of a given kind with random parameters."""
    rng, n = np.random.default_rng(seed), basis.n_basis
    references: dict[str, Any] = {
        "none": None,
        "atom_ref": AtomRef(rng.normal(size=basis.n_types) - 40, rng.normal(), rng.normal(size=n)),
        "linear": LinearReferences(torch.tensor([0.0, *(rng.normal(size=118) - 40)], dtype=torch.float64)),
    }
    stds, max_grads, biases = rng.uniform(0.01, 200, n), rng.uniform(0, 5, n), rng.normal(size=n)
    if rescaling == "equivariant":
        first = [basis.basis_func_to_shell.tolist().index(shell) for shell in basis.basis_func_to_shell]
        stds, max_grads, biases = stds[first], max_grads[first], np.where(basis.l_per_basis_func == 0, biases, 0)
    module = None if rescaling == "none" else DimensionWiseRescaling(biases, stds, max_grads, epsilon=epsilon)
    return Normalizer(references[reference], module, scale, **options)


@pytest.fixture(scope="session")
def make_normalizer() -> Callable[..., Normalizer]:
    """`random_normalizer(basis, seed, reference, rescaling, scale, epsilon, **options)`."""
    return random_normalizer


@pytest.fixture(scope="session")
def samples(basis_info, scf_samples) -> list[OFData]:
    """Four samples of each of seven molecules, some with much larger gradients than others; the first has no label."""
    rng = np.random.default_rng(5)
    molecules = [[8, 1, 1], [6, 1, 1, 1, 1], [6, 8], [1, 1], [6, 6, 1, 1], [8, 8], [8, 6, 8]]
    out: list[OFData] = scf_samples(basis_info, rng, molecules, 4)
    for sample in out:
        sample.has_energy_label = sample.scf_iteration > 0
        sample.gradient_label = sample.gradient_label * float(rng.choice([0.3, 1, 4]))
    return out


@pytest.fixture(scope="session")
def statistics(samples, basis_info) -> DatasetStatistics:
    weighers = [ConstantSampleWeigher(), HasEnergyLabelSampleWeigher()]
    options: Any = {"progress": False, "attributes": {"coordinates": "raw"}}
    return DatasetStatistics.from_dataset(
        None, samples, basis_info, weighers, [InitialGuessOnlySampleWeigher()], **options
    )
