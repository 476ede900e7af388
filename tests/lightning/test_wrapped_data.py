"""Somebody else's data: energies and forces, or densities, from data sets and from data modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.datasets import FakeDataset
from torch_geometric.loader import DataLoader

from ofdft_norm import NormalizerMixin, OFDFTDataModule
from ofdft_norm.config import (
    AtomRefConfig,
    LinearReferencesConfig,
    LoaderConfig,
    RescalingConfig,
    StatisticsConfig,
)
from ofdft_norm.errors import BatchError, ConfigError, SplitError

REFERENCES = {1: -0.5, 6: -37.8, 8: -75.1}


def molecules(n: int, seed: int) -> list[Data]:
    """Random molecules whose energies are sums over atoms and a remainder of a tenth of a hartree."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        z = rng.choice([1, 6, 8], rng.integers(2, 9))
        energy = sum(REFERENCES[int(i)] for i in z) + 0.1 * rng.normal()
        out.append(
            Data(
                z=torch.from_numpy(z),
                pos=torch.from_numpy(rng.normal(size=(len(z), 3))).float(),
                y=torch.tensor([[energy]], dtype=torch.float64),
                force=torch.from_numpy(rng.normal(size=(len(z), 3))),
            )
        )
    return out


def least_squares(data: list[Data]) -> tuple[np.ndarray, np.ndarray]:
    """References of H, C, O and the residuals of all molecules, with numpy alone."""
    counts = np.array([[(m.z == z).sum().item() for z in REFERENCES] for m in data], dtype=float)
    energies = np.array([float(m.y) for m in data])
    references = np.linalg.lstsq(counts, energies, rcond=None)[0]
    return references, energies - counts @ references


class Potential(NormalizerMixin, LightningModule):
    """A constant for each atom; tested against the raw energies and forces."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        energy = self.constant * torch.bincount(batch.batch)
        return (energy - batch.y.reshape(-1)).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert batch.normalized.all()

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {
            "energy": self.normalizer.denormalize_energy(batch.y.double(), batch),
            "forces": self.normalizer.denormalize_forces(batch.force, batch),
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class SomebodysDataModule(LightningDataModule):
    """Sets up parts by stage, as many do, with loaders of its own."""

    def __init__(self, make: Callable[[], tuple[Any, Any, Any]]) -> None:
        super().__init__()
        self.make = make
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str) -> None:
        self.calls.append(stage)
        train, val, test = self.make()
        if stage == "fit":
            self.train, self.val = train, val
        if stage == "test":
            self.test = test

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=2, shuffle=True)

    def val_dataloader(self) -> list[DataLoader]:
        return [DataLoader(self.val, batch_size=3)]

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=3)


def three_splits() -> tuple[list[Data], list[Data], list[Data]]:
    return molecules(40, 0), molecules(7, 1), molecules(5, 2)


@pytest.mark.parametrize("kind", ["lists", "in_memory", "datamodule"])
def test_energies_and_forces_of_somebody_else_are_normalised(setting: Any, kind: str) -> None:
    splits = three_splits()
    options: dict[str, Any] = {"energy_field": "y", "forces_field": "force", "energy_scale": "std", "dtype": "float64"}
    options["loader"] = LoaderConfig(batch_size=4)
    if kind == "datamodule":
        datamodule = OFDFTDataModule.wrap(SomebodysDataModule(lambda: splits), **options)
    elif kind == "in_memory":

        class Stored(InMemoryDataset):
            def __init__(self, data: list[Data]) -> None:
                super().__init__()
                self.data, self.slices = self.collate(data)

        train, val, test = map(Stored, splits)
        datamodule = OFDFTDataModule.wrap(train=train, val=val, test=test, **options)
    else:
        datamodule = OFDFTDataModule.wrap(train=splits[0], val=splits[1], test=splits[2], **options)
    references, residuals = least_squares(splits[0])
    before = copy.deepcopy(splits)

    model, trainer = Potential(), setting.trainer()
    trainer.fit(model, datamodule=datamodule)
    normalizer = model.normalizer
    found = normalizer.reference.element_references[list(REFERENCES)]
    np.testing.assert_allclose(found, references, rtol=0, atol=1e-10)
    scale = residuals.std()
    assert float(normalizer.energy_scale) == pytest.approx(scale, rel=1e-9)

    for part, data in zip(("train", "val", "test"), splits, strict=True):
        sample = datamodule.datasets[part][2]
        expected = (float(data[2].y) - sum(references[list(REFERENCES).index(int(z))] for z in data[2].z)) / scale
        assert float(sample.y) == pytest.approx(expected, rel=1e-7)
        torch.testing.assert_close(sample.force, data[2].force / scale)
    predictions = trainer.predict(model, datamodule=datamodule)
    torch.testing.assert_close(
        torch.cat([p["energy"].reshape(-1) for p in predictions]), torch.cat([m.y.reshape(-1) for m in splits[2]])
    )
    torch.testing.assert_close(torch.cat([p["forces"] for p in predictions]), torch.cat([m.force for m in splits[2]]))
    for old, new in zip(before, splits, strict=True):  # nobody's samples were changed
        for a, b in zip(old, new, strict=True):
            assert a.keys() == b.keys()
            assert torch.equal(a.y, b.y)
            assert torch.equal(a.force, b.force)


def test_a_wrapped_data_module_is_asked_for_what_a_stage_needs(setting: Any) -> None:
    theirs = SomebodysDataModule(three_splits)
    datamodule = OFDFTDataModule.wrap(theirs, energy_field="y")
    trainer = setting.trainer()
    trainer.fit(Potential(), datamodule=datamodule)
    assert theirs.calls[0] == "prepare"
    assert "test" not in theirs.calls
    assert theirs.trainer is trainer
    with pytest.raises(SplitError, match="no 'predict' split"):
        OFDFTDataModule.wrap(theirs, energy_field="y", predict_on="predict").predict_dataloader()
    with pytest.raises(ConfigError, match="wrapped data have train, val, test and predict parts"):
        OFDFTDataModule.wrap(theirs, energy_field="y", predict_on="all").predict_dataloader()


def test_pygs_own_fake_data_set_gets_references(setting: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    raw = FakeDataset(num_graphs=20, avg_num_nodes=8, task="graph", num_channels=4)
    data = []
    for graph in raw:
        graph.atomic_numbers = 1 + 5 * (torch.arange(graph.num_nodes) % 2)
        graph.energy = -1.5 * graph.atomic_numbers.double().sum().reshape(1)
        data.append(graph)
    datamodule = OFDFTDataModule.wrap(train=data[:15], test=data[15:], energy_field="energy")
    datamodule.setup("fit")
    references = datamodule.normalizer.reference.element_references
    assert [round(float(references[z]), 9) for z in (1, 6)] == [-1.5, -9.0]
    batch = next(iter(datamodule.test_dataloader()))
    assert batch.energy.abs().max() < 1e-5
    assert batch.edge_index.dtype == torch.int64
    assert batch.num_graphs == 5


def test_densities_of_somebody_else_are_normalised_as_ours(setting: Any) -> None:
    own = setting.datamodule(dtype="float64", loader={"shuffle": False})
    own.setup("fit")
    basis_info = own.basis_info

    def bare(part: str) -> list[Any]:
        dataset = own.raw_datasets[part]
        transform, dataset.transform = dataset.transform, None
        samples = [dataset[i] for i in range(len(dataset))]
        dataset.transform = transform
        return samples

    train, test = bare("train"), bare("test")
    wrapped = OFDFTDataModule.wrap(
        train=train,
        test=test,
        basis_info=basis_info,
        reference=AtomRefConfig(),
        rescaling=RescalingConfig(),
        dtype="float64",
        loader=LoaderConfig(batch_size=8, shuffle=False),
        statistics=StatisticsConfig(dir=str(setting.folder / "other"), progress=False),
    )
    wrapped.setup("fit")
    assert wrapped.fingerprint is None
    assert not (setting.folder / "other").exists()  # nothing tells whether they changed: never reused
    for part in ("train_dataloader", "test_dataloader"):
        for a, b in zip(getattr(own, part)(), getattr(wrapped, part)(), strict=True):
            for field in ("coeffs", "gradient_label", "energy_label", "energy_reference", "dual_basis_integrals"):
                torch.testing.assert_close(a[field], b[field], rtol=1e-9, atol=1e-9)


def test_what_wrapped_data_lack_is_named(setting: Any) -> None:
    train = molecules(5, 0)
    with pytest.raises(ConfigError, match="need density coefficients"):
        OFDFTDataModule.wrap(train=train, energy_field="y", reference=AtomRefConfig()).setup("fit")
    with pytest.raises(ConfigError, match="either a datamodule or a train data set"):
        OFDFTDataModule.wrap()
    with pytest.raises((BatchError, ValueError), match="energy"):
        OFDFTDataModule.wrap(train=train, energy_field="energy").setup("fit")
    given = OFDFTDataModule.wrap(train=train, energy_field="y", reference=LinearReferencesConfig(values={"H": -0.5}))
    with pytest.raises(ValueError, match=r"element"):
        given.setup("fit")

    class Untrained(LightningDataModule):
        def test_dataloader(self) -> DataLoader:
            return DataLoader(train)

    with pytest.raises(SplitError, match="Untrained has no train_dataloader"):
        OFDFTDataModule.wrap(Untrained(), energy_field="y").setup("fit")

    class Streaming(LightningDataModule):
        def train_dataloader(self) -> Any:
            return iter(train)

    with pytest.raises(SplitError, match=r"Streaming\.train_dataloader\(\) returned a list_iterator"):
        OFDFTDataModule.wrap(Streaming(), energy_field="y").setup("fit")


def test_wrapped_data_travel_in_checkpoints_by_their_normalizer_alone(setting: Any, tmp_path: Any) -> None:
    datamodule = OFDFTDataModule.wrap(SomebodysDataModule(three_splits), energy_field="y", forces_field="force")
    trainer, model = setting.trainer(), Potential()
    trainer.fit(model, datamodule=datamodule)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    loaded = Potential.load_from_checkpoint(tmp_path / "run.ckpt")
    assert loaded.normalizer.forces_field == "force"
    with pytest.raises(ConfigError, match=r"arguments \['source'\]"):
        OFDFTDataModule.load_from_checkpoint(tmp_path / "run.ckpt")
    again = OFDFTDataModule.load_from_checkpoint(tmp_path / "run.ckpt", source=datamodule.source)
    assert torch.equal(
        again.normalizer.reference.element_references, datamodule.normalizer.reference.element_references
    )
