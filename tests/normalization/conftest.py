"""Random normalisers, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import AtomRef, BasisInfo, DimensionWiseRescaling, LinearReferences, Normalizer


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
