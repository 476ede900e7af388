"""References that correct given ones: what the data do not determine, stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from ofdft_norm import LinearReferences, OFDFTDataModule, create_element_references
from ofdft_norm.config import AtomRefConfig, LinearReferencesConfig
from ofdft_norm.errors import ConfigError, StatisticsError

BASE = {1: -0.4, 6: -37.0, 7: -54.0, 8: -75.0}


def molecules(compositions: list[list[int]], shift: float = 0.3) -> list[Data]:
    """Energies of the base's references, each element's shifted, and noise that is no sum over atoms."""
    rng = np.random.default_rng(0)
    return [
        Data(z=torch.tensor(z), energy=sum(BASE[i] + shift * i for i in z) + 0.01 * rng.normal()) for z in compositions
    ]


def numpy_correction(data: list[Data], ridge: float = 0.0) -> dict[int, float]:
    """The smallest correction of the base that fits best, with numpy alone."""
    elements = sorted({int(i) for m in data for i in m.z})
    counts = np.array([[(m.z == z).sum().item() for z in elements] for m in data], float)
    left = np.array([float(m.energy) - sum(BASE[int(i)] for i in m.z) for m in data])
    penalty = ridge * np.linalg.svd(counts)[1][0] * np.eye(len(elements))
    delta = np.linalg.lstsq(np.vstack([counts, penalty]), np.append(left, np.zeros(len(elements))), rcond=None)[0]
    return dict(zip(elements, delta.tolist(), strict=True))


def fit(data: list[Data], base: Path, **options: Any) -> LinearReferences:
    reference = LinearReferencesConfig(base=str(base), **options)
    datamodule = OFDFTDataModule.wrap(train=data, energy_field="energy", reference=reference)
    datamodule.setup("fit")
    found = datamodule.normalizer.reference
    assert isinstance(found, LinearReferences)
    return found


@pytest.fixture
def base(tmp_path: Path) -> Path:
    values = torch.tensor([BASE.get(z, 0.0) for z in range(10)], dtype=torch.float64)
    torch.save({"element_references": values}, tmp_path / "b.pt")
    return tmp_path / "b.pt"


@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("count_by", ["molecule", "sample"])
@pytest.mark.parametrize(
    "compositions",
    [
        [[1], [6, 1], [1, 1, 8], [8, 8], [6, 6, 1], [6, 8]],
        [[6, 1, 1, 1, 1], [6, 6, *[1] * 8], [6] * 3 + [1] * 12],  # C and H in one proportion, no O
    ],
)
def test_the_smallest_correction_is_added(base: Path, compositions: Any, count_by: Any, ridge: float) -> None:
    data = molecules(compositions)
    references = fit(data, base, count_by=count_by, ridge=ridge)
    delta = numpy_correction(data, ridge)
    for z, value in BASE.items():
        assert float(references.element_references[z]) == pytest.approx(value + delta.get(z, 0.0), abs=1e-9)
    assert references.seen_elements.nonzero().squeeze(1).tolist() == sorted(BASE)
    report = references.fit_report
    assert report is not None
    assert report.moved == pytest.approx(list(delta.values()), abs=1e-9)
    assert f"moved from the base [hartree]: H {delta[1]:+.3g}" in str(references.summary("hartree"))


def test_a_checkpoint_is_a_base_and_says_in_the_log_how_far_it_moved(tmp_path: Path, caplog: Any) -> None:
    old = molecules([[1], [6, 1], [7, 7], [1, 1, 8], [8, 8]], 0.0)
    datamodule = OFDFTDataModule.wrap(train=old, energy_field="energy")
    datamodule.setup("fit")
    assert datamodule.normalizer is not None
    first = datamodule.normalizer.reference
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": {}, "OFDFTDataModule": datamodule.state_dict()}, path)
    opened = create_element_references(path)
    assert isinstance(first, LinearReferences)
    assert torch.equal(opened.element_references, first.element_references)
    caplog.set_level("INFO")
    moved = fit(molecules([[1], [8, 8], [8, 1]]), path)
    assert "old.ckpt: moved from the base [hartree]: H +0.3" in caplog.text
    assert torch.equal(moved.element_references[[6, 7]], first.element_references[[6, 7]])


def test_bases_that_are_none_are_refused(tmp_path: Path, base: Path) -> None:
    data = molecules([[1], [8]])
    atomic = OFDFTDataModule(reference=AtomRefConfig())
    torch.save({"state_dict": {}, "OFDFTDataModule": {**atomic.state_dict(), "normalizer": None}}, tmp_path / "a.ckpt")
    with pytest.raises(StatisticsError, match="has no references by element, but none: give a checkpoint"):
        fit(data, tmp_path / "a.ckpt")
    with pytest.raises(StatisticsError, match="base has elements beyond max_num_elements = 7"):
        fit(molecules([[1], [6]]), base, max_num_elements=7)
    with pytest.raises(ConfigError, match=r"data\.reference\.base is corrected by a fit"):
        LinearReferencesConfig(base=str(base), values={"H": 1.0})
