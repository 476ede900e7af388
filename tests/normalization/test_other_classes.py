"""Samples of another class than PyG's, whose `get` wants a default: fairchem's `AtomicData` is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from ofdft_norm import LinearReferences, Normalizer, OFDFTDataModule, fit_linear_references
from ofdft_norm.config import LoaderConfig
from ofdft_norm.errors import NormalizationError


class AtomicData:
    """Fields as attributes, and the methods that fairchem's class has."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__["names"] = set()
        for name, value in fields.items():
            self[name] = value

    def keys(self) -> set[str]:
        return self.__dict__["names"]

    def get(self, key: str, default: Any) -> Any:
        return getattr(self, key, default)

    def __contains__(self, key: str) -> bool:
        return key in self.keys()

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value)
        self.keys().add(key)

    def __getattr__(self, key: str) -> Any:
        raise AttributeError(key)

    def __delitem__(self, key: str) -> None:
        delattr(self, key)
        self.keys().remove(key)


def collate(samples: Sequence[AtomicData]) -> AtomicData:
    """Joins samples as fairchem's `atomicdata_list_to_batch` does."""
    first = samples[0]
    joined: dict[str, Any] = {
        name: torch.cat([s[name] for s in samples]) if isinstance(first[name], Tensor) else [s[name] for s in samples]
        for name in first.keys()
    }
    joined["batch"] = torch.repeat_interleave(torch.cat([s["natoms"] for s in samples]))
    return AtomicData(**joined)


REFERENCES = {1: -0.5, 8: -75.0}


def samples(n: int) -> list[AtomicData]:
    rng = np.random.default_rng(0)
    out = []
    for _ in range(n):
        z = torch.from_numpy(rng.choice([1, 8], rng.integers(1, 5)))
        energy = sum(REFERENCES[int(i)] for i in z) + 0.01 * rng.normal()
        fields = {"pos": torch.zeros(len(z), 3), "natoms": torch.tensor([len(z)]), "batch": torch.zeros_like(z)}
        energies = torch.tensor([energy], dtype=torch.float64)
        out.append(AtomicData(atomic_numbers=z, energy=energies, forces=torch.ones(len(z), 3), dataset=["a"], **fields))
    return out


def as_pyg(data: Sequence[AtomicData]) -> list[Data]:
    return [Data(z=s.atomic_numbers, energy=s.energy, forces=s.forces) for s in data]


def test_references_are_fitted_and_applied() -> None:
    data = samples(20)
    references = fit_linear_references(["energy"], data, batch_size=4)["energy"]
    expected = fit_linear_references(["energy"], as_pyg(data), batch_size=4)["energy"]
    assert torch.equal(references.element_references, expected.element_references)
    batch = collate(data)
    left = references.dereference(batch.energy, batch)
    assert float(left.abs().max()) < 0.1
    torch.testing.assert_close(references(left, batch), batch.energy, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [collate, lambda data: data[0]])
def test_the_normaliser_goes_there_and_back_and_leaves_its_argument_alone(make: Any) -> None:
    raw = make(samples(5))
    references = torch.tensor([0, -0.5, *[0] * 6, -75.0], dtype=torch.float64)
    normalizer = Normalizer(LinearReferences(references), None, 0.1, energy_field="energy", forces_field="forces")
    energy, names = raw.energy.clone(), set(raw.keys())
    out: Any = normalizer.normalize(raw)
    assert type(out) is AtomicData
    sums = torch.zeros_like(energy).index_add(0, raw.batch, references[raw.atomic_numbers])
    torch.testing.assert_close(out.energy, (energy - sums) / 0.1, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(out.forces, torch.ones_like(out.forces) / 0.1)
    torch.testing.assert_close(normalizer.denormalize_energy(out.energy, out), energy, rtol=0, atol=1e-10)
    back: Any = normalizer.denormalize(out)
    torch.testing.assert_close(back.energy, energy, rtol=0, atol=1e-10)
    assert set(back.keys()) == names == set(raw.keys())
    assert torch.equal(raw.energy, energy)
    with pytest.raises(NormalizationError, match="normalised already"):
        normalizer.normalize(out)


class TheirDataModule(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(samples(20), batch_size=4, collate_fn=collate)


@pytest.mark.parametrize("own_loader", [True, False])
def test_wrapped_data_keep_their_class_where_they_are_collated_by_their_owner(own_loader: bool) -> None:
    options: dict[str, Any] = {"energy_field": "energy", "forces_field": "forces", "dtype": "float64"}
    if own_loader:
        datamodule = OFDFTDataModule.wrap(TheirDataModule(), **options)
    else:
        datamodule = OFDFTDataModule.wrap(
            train=samples(20), loader=LoaderConfig(batch_size=4, shuffle=False), **options
        )
    datamodule.setup("fit")
    batches: list[Any] = list(datamodule.train_dataloader())
    assert {isinstance(batch, AtomicData) for batch in batches} == {own_loader}
    found = torch.cat([datamodule.normalizer.denormalize_energy(batch.energy, batch) for batch in batches])
    torch.testing.assert_close(found, torch.cat([s.energy for s in samples(20)]), rtol=0, atol=1e-9)
    assert len(batches) == 5
    assert float(batches[0].energy.abs().max()) < 0.1
