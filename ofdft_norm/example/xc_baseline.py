"""The energy that composition and exchange-correlation energy alone predict: a baseline that no model may lose to."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.config import LabelFiles
from ofdft_norm.data.of_data import molecule_index
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import LabelFileError
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.units import conversion

log = logging.getLogger(__name__)

XC_KEY = "e_xc"
MAX_FILES = 10_000  # reading every energy of more label files would take longer than training the example

# by molecule and SCF iteration
XCEnergies = Mapping[tuple[str, int], float]


class CompositionAndXC:
    """E = sum over atoms of a_Z + b E_xc(p) + c, by least squares over the labelled training samples.

    E_xc(p) is no part of what a kinetic functional sees, but it follows from the same density: a network that knows the
    density has no excuse for a larger error.

    Args:
        weights: (n_types + 2,) float64: a_Z of each element, b, c.
        xc_energies: Of all samples that are to be predicted.
    """

    def __init__(self, weights: Tensor, xc_energies: XCEnergies) -> None:
        self.weights = weights
        self.xc_energies = xc_energies

    @classmethod
    def fitted(
        cls, xc_energies: XCEnergies, batches: Iterable[Data], normalizer: Normalizer, n_types: int
    ) -> CompositionAndXC:
        """Fits the weights; the solution of minimum norm where compositions are rank deficient.

        Args:
            xc_energies: Of all samples, also of those to predict later.
            batches: Normalised batches of the training split.
            normalizer: Their normaliser.
            n_types: Number of elements of the basis.
        """
        rows, energies = [], []
        for batch in batches:
            labelled = batch.has_energy_label.reshape(-1)
            rows.append(_features(batch, xc_energies, n_types)[labelled])
            energies.append(normalizer.denormalize_energy(batch.energy_label.reshape(-1), batch)[labelled])
        # gelsd, the driver that knows ranks, runs on the CPU alone
        solution = torch.linalg.lstsq(
            torch.cat(rows).cpu(), torch.cat(energies).cpu()[:, None], driver="gelsd"
        ).solution
        return cls(solution[:, 0], xc_energies)

    def __call__(self, batch: Data) -> tuple[Tensor, Tensor]:
        """Returns (n_molecules,) energies; and NaN for gradients, which it does not predict."""
        weights = self.weights.to(batch.coeffs.device)
        energies = _features(batch, self.xc_energies, len(weights) - 2) @ weights
        return energies, torch.full_like(batch.coeffs, torch.nan, dtype=torch.float64)


def _features(batch: Data, xc_energies: XCEnergies, n_types: int) -> Tensor:
    """Returns (n_molecules, n_types + 2): the number of atoms of each element, E_xc (NaN: unknown), and 1."""
    molecule = molecule_index(batch, "pos")
    samples = zip(batch.mol_id, batch.scf_iteration.reshape(-1).tolist(), strict=True)
    xc = [xc_energies.get((mol_id, iteration), torch.nan) for mol_id, iteration in samples]
    counts = torch.zeros(len(xc) * n_types, dtype=torch.float64, device=molecule.device)
    counts.index_add_(0, molecule * n_types + batch.atom_ind, counts.new_ones(len(molecule)))
    columns = [counts.reshape(-1, n_types), counts.new_tensor(xc)[:, None], counts.new_ones(len(xc), 1)]
    return torch.cat(columns, dim=1)


def read_xc_energies(datamodule: OFDFTDataModule) -> XCEnergies | None:
    """Reads the exchange-correlation energy of every labelled sample of a source of label files, packed or not.

    Args:
        datamodule: The data module whose source is read.

    Returns:
        The energies; None where the source has no label files, more than `MAX_FILES`, or labels without them.
    """
    source = datamodule.source
    if not isinstance(source, LabelFiles):
        return None
    if len(source.label_files()) > MAX_FILES:
        return None
    factor = conversion(source.unit, datamodule.unit)
    try:
        samples = replace(source, energy_key=XC_KEY).as_stored()
        labelled = [s for s in samples if bool(s.has_energy_label)]
        return {(s.mol_id, int(s.scf_iteration)): factor * float(s.energy_label) for s in labelled}
    except LabelFileError as error:
        log.info("no baseline of composition and E_xc: %s", error)
        return None
