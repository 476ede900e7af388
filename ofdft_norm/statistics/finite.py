"""Refuses labels that are not finite, naming the molecule."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.of_data import molecule_index
from ofdft_norm.errors import StatisticsError


def refuse_non_finite(batch: Data, field: str, values: Tensor, weights: Tensor) -> None:
    """Raises if a sample of positive weight has a value that is not finite.

    Args:
        batch: S samples.
        field: Name of the field.
        values: Its values, one for each sample (S,) or one for each function (N,).
        weights: (K, S).

    Raises:
        StatisticsError: Naming sample, molecule, field and value.
    """
    per_function = field != "energy_label"
    used = weights.any(0)[molecule_index(batch)] if per_function else weights.any(0)
    bad = (~torch.isfinite(values.reshape(-1)) & used).nonzero().reshape(-1)
    if not len(bad):
        return
    entry = int(bad[0])
    sample = int(molecule_index(batch)[entry]) if per_function else entry
    names = batch.get("mol_id")
    name = names[sample] if isinstance(names, list) else names
    iteration = batch.get("scf_iteration")
    where = "" if iteration is None else f", SCF iteration {int(iteration.reshape(-1)[sample])}"
    raise StatisticsError(
        f"molecule {name!r} (sample {sample} of its batch{where}): field {field!r} is "
        f"{float(values.reshape(-1)[entry])}; "
        "statistics need finite numbers: correct the label, mark it by has_energy_label=False, or give the sample "
        "weight 0"
    )
