"""Refuses labels that are not finite, naming the molecule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.of_data import molecule_index, n_molecules, sample_name, scf_iteration
from ofdft_norm.errors import StatisticsError
from ofdft_norm.statistics.element_blocks import field_values


def refuse_non_finite(batches: Sequence[Data], field: str, weights: Tensor) -> None:
    """Raises if a sample of positive weight has a value that is not finite.

    Args:
        batches: Batches of S samples together.
        field: Name of the field: one value for each sample (`energy_label`), or one for each function.
        weights: (K, S).

    Raises:
        StatisticsError: Naming sample, molecule, field and value.
    """
    for batch, used in zip(batches, weights.any(0).split([n_molecules(b) for b in batches]), strict=True):
        _refuse_in_batch(batch, field, used)


def _refuse_in_batch(batch: Data, field: str, used: Tensor) -> None:
    if field == "energy_label":
        values, sample_of_value = batch.energy_label.detach().reshape(-1), torch.arange(len(used))
    else:
        values, sample_of_value = field_values(batch, field), molecule_index(batch)
    bad = (~torch.isfinite(values) & used[sample_of_value]).nonzero().reshape(-1)
    if not len(bad):
        return
    entry = int(bad[0])
    sample = int(sample_of_value[entry])
    iteration = scf_iteration(batch, sample)
    where = "" if iteration is None else f", SCF iteration {iteration}"
    raise StatisticsError(
        f"molecule {sample_name(batch, sample)!r} (sample {sample} of its batch{where}): field {field!r} is "
        f"{float(values[entry])}; "
        "statistics need finite numbers: correct the label, mark it by has_energy_label=False, or give the sample "
        "weight 0"
    )
