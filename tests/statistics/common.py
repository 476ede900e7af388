"""A short form of the fit, comparisons of statistics, and weighers that take fields of samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm import BasisInfo, ConstantSampleWeigher, DatasetStatistics, SampleWeigher
from ofdft_norm.statistics.weighers import FieldSampleWeigher
from tests.naive_statistics import Values

CONSTANT = (ConstantSampleWeigher(),)


class FieldWeigher:
    """Takes each sample's weight from its field `weight`; a class of another package, with STRUCTURES25's methods."""

    def get_weights(self, batch: Data) -> Tensor:
        return batch["weight"]

    def summary_string(self) -> str:
        return "field"


# keys of weighers, and the fields of their weights
FIELDS = {"field": "weight", "field_other_weight": "other_weight"}
FIELD_WEIGHERS: Any = (FieldWeigher(), FieldSampleWeigher("other_weight"))


def fit(dataset: Any, basis_info: BasisInfo | None, weighers: Sequence[SampleWeigher] = CONSTANT, **kwargs: Any) -> Any:
    return DatasetStatistics.from_dataset(None, dataset, basis_info, weighers, progress=False, **kwargs)


def assert_close(statistics: DatasetStatistics, weigher: str, expected: Values) -> None:
    """Compares with tolerances that scale with the data: energies by the largest energy, fields by their own size."""
    energy_scale = abs(expected["energy/mean"]) + expected["energy/abs_max"]
    for key, value in expected.items():
        field = key.split("/")[0]
        scale = np.max(np.abs(expected[f"{field}/abs_max"])) if field in ("coeffs", "gradient_label") else energy_scale
        found = statistics.load_statistic(weigher, key)
        np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-9 * max(scale, 1.0), err_msg=key)


def assert_same_statistics(found: DatasetStatistics, expected: DatasetStatistics) -> None:
    """Compares all arrays. R factors are squared: where the rank is deficient, their rows may be rotated."""
    arrays = [{k: a.T @ a if k.endswith("_factor") else a for k, a in s.to_arrays().items()} for s in (found, expected)]
    assert arrays[0].keys() == arrays[1].keys()
    for key, value in arrays[1].items():
        scale = max(float(np.max(np.abs(value))), 1.0)
        np.testing.assert_allclose(arrays[0][key], value, rtol=1e-11, atol=1e-11 * scale, err_msg=key)
