"""Changes of basis: what they cost beside one diagonalisation of each molecule's overlap."""

from __future__ import annotations

from time import process_time

import numpy as np
import torch
from torch_geometric.data import Batch

from ofdft_norm import BasisInfo, BasisTransforms, LocalFrames, NaturalReparametrization, OFData
from ofdft_norm.benchmarks.comparison import Row, compare
from ofdft_norm.transforms import basis_transforms
from ofdft_norm.transforms.molecule import molecules_of
from ofdft_norm.transforms.overlap import overlap_of

N_ITERATIONS = 10


def measure(repeats: int) -> list[Row]:
    """Measures molecules of two sizes, those of the embedded labels and of QM9, in processor time.

    Args:
        repeats: Rounds, in each of which both sides are timed.
    """
    torch.set_num_threads(1)  # as configs/train.yaml
    return [row for size in ((3, 4, 100), (9, 9, 12)) for row in rows_of_size(*size, repeats)]


def rows_of_size(n_heavy: int, n_hydrogen: int, n_molecules: int, repeats: int) -> list[Row]:
    """Measures molecules of some carbon and hydrogen atoms, all iterations of one molecule at once.

    Args:
        n_heavy: Carbon atoms of a molecule.
        n_hydrogen: Hydrogen atoms of a molecule.
        n_molecules: Number of molecules.
        repeats: Rounds, in each of which both sides are timed.
    """
    basis_info = BasisInfo.from_atomic_numbers_with_even_tempered_basis([1, 6])
    rng = np.random.default_rng(0)
    batches = [random_densities(basis_info, n_heavy, n_hydrogen, rng) for _ in range(n_molecules)]
    overlaps = [overlap_of(molecules_of(batch)[0][0]) for batch in batches]
    chains = {
        "natural reparametrisation": [NaturalReparametrization()],
        "local frames and natural reparametrisation": [LocalFrames(), NaturalReparametrization()],
    }
    rows = []
    for name, chain in chains.items():
        transform = BasisTransforms(chain)

        def transform_all(transform: BasisTransforms = transform) -> None:
            basis_transforms.forget_molecules()
            for batch in batches:
                transform(batch.__copy__())

        times = compare(transform_all, lambda: [np.linalg.eigh(overlap) for overlap in overlaps], repeats, process_time)
        what = f"{name} of {n_molecules} molecules of {N_ITERATIONS} iterations and {len(overlaps[0])} functions"
        rows.append(Row(f"{what} / one diagonalisation each", *times, "<= 1.3"))
    return rows


def random_densities(basis_info: BasisInfo, n_heavy: int, n_hydrogen: int, rng: np.random.Generator) -> Batch:
    """Draws densities of carbon and hydrogen atoms on a coarse grid, none of them too close.

    Args:
        basis_info: The density basis.
        n_heavy: Carbon atoms.
        n_hydrogen: Hydrogen atoms.
        rng: Source of random numbers.
    """
    numbers = [6] * n_heavy + [1] * n_hydrogen
    cells = rng.choice(27, len(numbers), replace=False)
    pos = 2.6 * np.stack(np.unravel_index(cells, (3, 3, 3)), axis=1) + rng.uniform(-0.3, 0.3, (len(numbers), 3))
    n = int(basis_info.basis_dim_per_atom[basis_info.atom_indices(np.array(numbers))].sum())
    ground_state = rng.normal(size=n)
    return Batch.from_data_list(
        [
            OFData.construct_new(basis_info, pos, numbers, rng.normal(size=n), ground_state, rng.normal(size=n))
            for _ in range(N_ITERATIONS)
        ],
        follow_batch=["coeffs"],
    )
