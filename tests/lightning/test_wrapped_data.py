"""Somebody else's data: energies and forces, or densities, from data sets and from data modules."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import BatchSampler, WeightedRandomSampler
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


# --- fields that are named -------------------------------------------------------------------------------------------


def without(sample: Data, field: str) -> Data:
    changed = copy.copy(sample)
    del changed[field]
    return changed


def changed(sample: Data, **fields: Any) -> Data:
    out = copy.copy(sample)
    for field, value in fields.items():
        out[field] = value
    return out


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda m: without(m, "force"), "lacks the field 'force'; it has .* (argument forces_field, config: "),
        (
            lambda m: without(m, "y"),
            "lacks the field 'y'; it has ['force', 'mol_id', 'pos', 'z'] (argument energy_field, ",
        ),
        (lambda m: without(m, "z"), "lacks the field 'atomic_numbers'; it has "),
        (lambda m: changed(m, force=m.force.T), "field 'force' has shape (3, 5), expected (5, 3): three numbers for"),
        (lambda m: changed(m, y=torch.zeros(2)), "field 'y' has shape (2,), expected one number"),
        (lambda m: changed(m, y=torch.tensor(torch.nan)), "field 'y' is nan, expected finite numbers"),
        (lambda m: changed(m, force=m.force / 0), "field 'force' is .*inf at atom 0, component 0, expected finite"),
        (lambda m: changed(m, y="low"), "field 'y' is 'low', expected a tensor of numbers"),
        (lambda m: changed(m, z=m.z + 0.5), "field 'z' is .*.5 at atom 0, expected atomic numbers 1 ... 118"),
        (lambda m: m.to_dict(), "is a dict, expected a torch_geometric.data.Data"),
    ],
)
def test_a_sample_that_lacks_what_is_named_is_named(make: Callable[[Data], Any], expected: str) -> None:
    data = molecules(9, 0)
    data[3] = next(m for m in molecules(20, 5) if len(m.z) == 5)
    data = [changed(m, mol_id=f"molecule_{i}") for i, m in enumerate(data)]
    bad = [*data[:3], make(data[3]), *data[4:]]
    pattern = re.escape(expected).replace(r"\.\*", ".*")
    options: dict[str, Any] = {"energy_field": "y", "forces_field": "force"}
    with pytest.raises(BatchError, match=rf"sample 3 of the train data.*{pattern}"):
        OFDFTDataModule.wrap(train=bad, **options).setup("fit")
    datamodule = OFDFTDataModule.wrap(train=data, test=bad, **options)
    datamodule.setup("fit")
    for loaded in (lambda: datamodule.datasets["test"][3], lambda: list(datamodule.test_dataloader())):
        with pytest.raises(BatchError, match=rf"sample 3 of the test data.*{pattern}"):
            loaded()


def test_a_wrong_name_is_answered_by_the_closest_field() -> None:
    with pytest.raises(BatchError, match=r"lacks the field 'forces'; .* did you mean 'force'"):
        OFDFTDataModule.wrap(train=molecules(3, 0), energy_field="y", forces_field="forces").setup("fit")


def test_samples_marked_as_unlabelled_need_no_labels() -> None:
    data = [changed(m, has_energy_label=torch.tensor([True])) for m in molecules(12, 0)]
    unlabelled = changed(data[0], y=torch.full((1, 1), torch.nan), has_energy_label=torch.tensor([False]))
    options: dict[str, Any] = {"energy_field": "y", "forces_field": "force", "energy_scale": "std"}
    datamodule = OFDFTDataModule.wrap(train=[*data, unlabelled], **options)
    datamodule.setup("fit")
    assert float(datamodule.normalizer.energy_scale) == pytest.approx(least_squares(data)[1].std(), rel=1e-9)


def test_python_numbers_and_arrays_are_read_in_float64() -> None:
    exact = molecules(12, 0)
    plain = [changed(m, y=float(m.y), force=m.force.numpy(), z=m.z.tolist()) for m in exact]
    modules = [
        OFDFTDataModule.wrap(train=data, energy_field="y", forces_field="force", dtype="float64")
        for data in (exact, plain)
    ]
    for datamodule in modules:
        datamodule.setup("fit")
    for a, b in zip(*(d.datasets["train"] for d in modules), strict=True):
        assert torch.equal(a.y.reshape(-1), b.y.reshape(-1))
        assert torch.equal(a.force, b.force)
        assert torch.equal(a.energy_reference, b.energy_reference)


def test_atomic_numbers_are_read_from_the_field_that_is_named() -> None:
    data = [changed(m, species=m.z, z=torch.ones_like(m.z)) for m in molecules(12, 0)]
    datamodule = OFDFTDataModule.wrap(train=data, energy_field="y", atomic_numbers_field="species")
    datamodule.setup("fit")
    expected = least_squares([changed(m, z=m.species) for m in data])[0]
    np.testing.assert_allclose(datamodule.normalizer.reference.element_references[list(REFERENCES)], expected)
    train: Any = datamodule.datasets["train"]
    energies = [datamodule.normalizer.denormalize_energy(s.y.double(), s) for s in train]
    torch.testing.assert_close(torch.cat(energies), torch.cat([m.y for m in data]))


# --- loaders ---------------------------------------------------------------------------------------------------------


def numbers(samples: list[Data]) -> list[int]:
    return [sample.number for sample in samples]


class OddLoaders(LightningDataModule):
    """Loaders with settings that nobody would guess."""

    def __init__(self) -> None:
        super().__init__()
        self.data = [changed(m, number=i, extra=m.pos) for i, m in enumerate(molecules(11, 0))]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return changed(batch, before=True)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return changed(batch, after=batch.before)

    def train_dataloader(self) -> DataLoader:
        weights = torch.arange(11.0)
        sampler = WeightedRandomSampler(weights, 9, generator=torch.Generator().manual_seed(3))
        keys = {"follow_batch": ["force"], "exclude_keys": ["extra"]}
        return DataLoader(self.data, batch_size=2, sampler=sampler, drop_last=True, **keys)

    def val_dataloader(self) -> DataLoader:
        sampler = BatchSampler([4, 2, 8, 1], 3, False)
        return DataLoader(self.data, batch_sampler=sampler)

    def test_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(self.data, batch_size=4, collate_fn=numbers)


def test_a_data_modules_loaders_keep_their_settings() -> None:
    theirs = OddLoaders()
    datamodule = OFDFTDataModule.wrap(theirs, energy_field="y", forces_field="force")
    datamodule.setup("fit")
    expected, found = list(theirs.train_dataloader()), list(datamodule.train_dataloader())
    assert [b.number.tolist() for b in found] == [b.number.tolist() for b in expected]
    assert [set(b.keys()) - set(a.keys()) for a, b in zip(expected, found, strict=True)] == 4 * [
        {"energy_reference", "normalized"}
    ]
    assert not {"extra"} & set(found[0].keys())
    assert torch.equal(found[0].force_batch, expected[0].force_batch)
    assert [b.number.tolist() for b in datamodule.val_dataloader()] == [[4, 2, 8], [1]]
    assert list(datamodule.test_dataloader()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert datamodule.batch_size == 2


def test_loader_settings_of_ones_own_win_over_theirs() -> None:
    loader = LoaderConfig(batch_size=5, shuffle=False)
    datamodule = OFDFTDataModule.wrap(OddLoaders(), energy_field="y", loader=loader)
    datamodule.setup("fit")
    assert [b.number.tolist() for b in datamodule.train_dataloader()] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert [b.number.tolist() for b in datamodule.val_dataloader()] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10]]
    datamodule.batch_size = 32  # the default, but asked for
    assert [len(b) for b in datamodule.val_dataloader()] == [11]
    assert datamodule.batch_size == 32


def test_a_loader_of_a_class_of_its_own_is_replaced_with_a_warning() -> None:
    class Special(DataLoader):
        pass

    class WithSpecial(OddLoaders):
        def train_dataloader(self) -> DataLoader:
            return Special(self.data, batch_size=2)

    datamodule = OFDFTDataModule.wrap(WithSpecial(), energy_field="y")
    with pytest.warns(UserWarning, match="settings of Special are kept, but torch's DataLoader loads in its place"):
        datamodule.setup("fit"), datamodule.train_dataloader()
    assert len(datamodule.train_dataloader()) == 6  # said once


@pytest.mark.parametrize("apply", ["dataset", "batch"])
def test_a_data_modules_hooks_see_its_batches(apply: str) -> None:
    datamodule = OFDFTDataModule.wrap(OddLoaders(), energy_field="y", apply=apply)
    datamodule.setup("fit")
    batch = datamodule.on_before_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
    assert "after" not in batch
    batch = datamodule.on_after_batch_transfer(batch, 0)
    assert batch.after
    assert batch.normalized.all()


def test_whole_batches_need_pygs_collation() -> None:
    datamodule = OFDFTDataModule.wrap(OddLoaders(), energy_field="y", apply="batch")
    datamodule.setup("test")
    with pytest.raises(ConfigError, match="data module collates with <function numbers"):
        datamodule.test_dataloader()
