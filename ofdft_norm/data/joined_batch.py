"""Makes samples, and batches of joined arrays without making their samples first, faster than PyG does."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Batch

from ofdft_norm.data.of_data import OFData

IntArray = npt.NDArray[np.int64]

_EMPTY = Batch(_base_cls=OFData)  # PyG looks the signature of its class up whenever one is made


def make_sample(fields: Mapping[str, Any]) -> OFData:
    """Returns a sample of these fields: as ``OFData(**fields)``, in 1 us instead of 50.

    Args:
        fields: Values by name.
    """
    sample = OFData()
    sample._store._mapping.update(
        fields
    )  # PyG looks for cached values of each field that is set; a new sample has none
    return sample


def make_batch(
    per_atom: Mapping[str, Tensor],
    per_function: Mapping[str, Tensor],
    per_sample: Mapping[str, Any],
    n_atoms: IntArray,
    n_functions: IntArray,
) -> OFData:
    """Returns what PyG's ``Batch.from_data_list(samples, follow_batch=["coeffs"])`` would.

    Args:
        per_atom: Fields with one entry for each atom of all samples, joined along the first axis.
        per_function: Fields with one entry for each basis function of all samples.
        per_sample: Fields with one entry for each sample.
        n_atoms: (n_samples,) number of atoms of each sample.
        n_functions: (n_samples,) number of basis functions of each sample.

    Returns:
        The batch; ``batch[i]`` and ``batch.to_data_list()`` give its samples.
    """
    n = len(n_atoms)
    ptr, coeffs_ptr = _starts(n_atoms), _starts(n_functions)
    batch = copy(_EMPTY)
    added = {
        "coeffs_batch": torch.from_numpy(np.repeat(np.arange(n), n_functions)),
        "coeffs_ptr": coeffs_ptr,
        "batch": torch.from_numpy(np.repeat(np.arange(n), n_atoms)),
        "ptr": ptr,
    }
    batch._store._mapping.update({**per_atom, **per_function, **per_sample, **added})
    # what `from_data_list` writes down to tell samples apart again
    batch._num_graphs = n
    batch._slice_dict = {
        **dict.fromkeys(per_atom, ptr),
        **dict.fromkeys(per_function, coeffs_ptr),
        **dict.fromkeys(per_sample, torch.arange(n + 1)),
    }
    batch._inc_dict = dict.fromkeys(batch._slice_dict)
    return batch


def _starts(lengths: IntArray) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
