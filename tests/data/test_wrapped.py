"""Data of other packages: energies and forces, or densities, from data sets and from data modules."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from lightning import LightningDataModule
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Subset, SubsetRandomSampler, random_split
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.loader import DataLoader

from ofdft_norm import OFDFTDataModule, ProjectGradient
from ofdft_norm.config import AtomRefConfig, LoaderConfig, RescalingConfig, StatisticsConfig
from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.parts import DataParts
from ofdft_norm.data.sources import EmbeddedLabels
from ofdft_norm.data.split import SplitConfig
from ofdft_norm.data.wrapped import WrappedData
from ofdft_norm.errors import BasisError, BatchError, ConfigError, NormalizationError, SplitError
from ofdft_norm.units import find_factor

ALL = SplitConfig(1.0, 0.0, 0.0)
OPTIONS: dict[str, Any] = {"energy_field": "y", "forces_field": "force"}


def molecules(n: int, seed: int = 0) -> list[Data]:
    """Random molecules with an energy and forces; the third one has five atoms."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(n):
        z = rng.choice([1, 6, 8], 5 if number == 3 else rng.integers(2, 9))
        pos, force = (torch.from_numpy(rng.normal(size=(len(z), 3))) for _ in range(2))
        y = torch.tensor([[rng.normal()]], dtype=torch.float64)
        out.append(Data(z=torch.from_numpy(z), pos=pos.float(), y=y, force=force, number=number))
    return out


def parts_of(source: WrappedData, split: SplitConfig = SplitConfig(), transforms: Any = ()) -> DataParts:  # noqa: B008
    return DataParts(source, split, transforms)


def assert_equal_samples(found: Any, expected: list[Data]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert int(a.number) == b.number
        assert torch.equal(a.y.reshape(-1), b.y.reshape(-1))
        assert torch.equal(a.force, b.force)


def changed(sample: Data, **fields: Any) -> Data:
    """A copy with other fields; None removes one."""
    kept = {**sample.to_dict(), **fields}
    return Data(**{name: value for name, value in kept.items() if value is not None})


def test_data_sets_are_read_as_they_are() -> None:
    train, test = molecules(9), molecules(5, 1)
    test = [changed(m, y=float(m.y), force=m.force.numpy(), z=m.z.tolist()) for m in test]  # become float64 tensors
    before = copy.deepcopy(train)
    parts = parts_of(WrappedData(train=train, test=Subset(test, [3, 1]), **OPTIONS))
    assert parts.names() == ["train", "test"]
    assert parts.loader("train") is None
    assert_equal_samples(parts["train"], train)
    assert_equal_samples(parts["test"], [molecules(5, 1)[i] for i in (3, 1)])
    assert (parts["train"].elements(), parts["test"].elements(), parts.state()) == ({1, 6, 8}, {1, 6, 8}, None)
    with pytest.raises(SplitError, match="no 'val' split"):
        _ = parts["val"]
    with pytest.raises(ConfigError, match="train, val, test and predict parts"):
        _ = parts["all"]
    assert [sample.keys() for sample in train] == [sample.keys() for sample in before]  # ours are copies
    assert_equal_samples(train, before)
    train[:] = train[:1]
    assert len(list(parts["train"])) == 9  # as it was when its statistics were fitted
    parts.release()
    assert len(list(parts["train"])) == 1


def test_a_split_divides_a_single_data_set_and_is_refused_for_divided_data() -> None:
    data, split = molecules(20), SplitConfig(0.6, 0.2, 0.2)
    parts = parts_of(WrappedData(train=data, **OPTIONS), split)
    found = {part: [int(sample.number) for sample in parts[part]] for part in parts.names()}
    assert {part: len(numbers) for part, numbers in found.items()} == {"train": 12, "val": 4, "test": 4}
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(20))
    assert_equal_samples(parts_of(WrappedData(train=data, **OPTIONS), ALL)["train"], data)
    for source in (WrappedData(train=data, val=data[:2], **OPTIONS), WrappedData(OwnLoaders(), **OPTIONS)):
        with pytest.raises(ConfigError, match=r"data\.split"):
            parts_of(source, split).names()
    with pytest.raises(ConfigError, match="a split file lists label files"):
        parts_of(WrappedData(train=data), SplitConfig(file="split.yaml")).names()
    with pytest.raises(ConfigError, match="either a datamodule or a train data set"):
        WrappedData()


def test_a_split_never_divides_the_scf_iterations_of_a_molecule(make_sample: Any, basis_info: BasisInfo) -> None:
    rng = np.random.default_rng(0)
    data = [make_sample(basis_info, rng, (8, 1, 1), f"water {i % 10}", scf_iteration=i // 10) for i in range(40)]
    parts = parts_of(WrappedData(train=data, basis_info=basis_info), SplitConfig(0.6, 0.2, 0.2))
    names = [{sample.mol_id for sample in parts[part]} for part in parts.names()]
    assert [len(own) for own in names] == [6, 2, 2]
    assert len(set.union(*names)) == 10


def test_structures_of_ase_are_converted() -> None:
    structures = [molecule(name) for name in ("H2O", "CH4", "NH3")]
    for i, atoms in enumerate(structures):
        atoms.calc = SinglePointCalculator(atoms, energy=-10.0 * i, forces=np.full((len(atoms), 3), float(i)))
    parts = parts_of(WrappedData(train=structures, forces_field="forces"), ALL)
    for i, sample in enumerate(parts["train"]):
        assert sample.atomic_numbers.tolist() == structures[i].numbers.tolist()
        assert (float(sample.energy_label), float(sample.forces.mean())) == (-10.0 * i, i)
        assert sample.mol_id == f"sample {i} of the train data"
    assert parts["train"].elements() == {1, 6, 7, 8}


# --- the check of samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda m: changed(m, force=None), "lacks the field 'force'; it has .*data.source.forces_field"),
        (lambda m: changed(m, z=None), "lacks the field 'atomic_numbers'"),
        (lambda m: changed(m, force=m.force.T), r"field 'force' has .*\(3, 5\), expected .*\(5, 3\)"),
        (lambda m: changed(m, y=torch.zeros(2)), r"field 'y' has .*\(2,\), expected one number"),
        (lambda m: changed(m, y=torch.tensor(torch.nan)), r"field 'y' is nan at entry \[\], expected finite numbers"),
        (lambda m: changed(m, y=torch.tensor(1j)), "field 'y' has dtype torch.complex64"),
        (lambda m: changed(m, pos=m.pos / 0), r"field 'pos' is .*inf at entry \[0, 0\]"),
        (lambda m: changed(m, z=m.z + 0.5), r"field 'z' has shape \(5,\) and the wrong values \[.*\.5, "),
        (lambda m: m.to_dict(), "is a dict"),
        (lambda m: changed(m, normalized=torch.tensor([True])), "is normalised already"),
    ],
)
def test_a_wrong_sample_is_named(make: Callable[[Data], Any], expected: str) -> None:
    data: list[Any] = molecules(9)
    data[3] = make(data[3])
    for part in ("train", "test"):
        parts = parts_of(WrappedData(**{"train": molecules(2), part: data, "val": []}, **OPTIONS))
        with pytest.raises((BatchError, NormalizationError), match=rf"sample 3 of the {part} data.*{expected}"):
            parts[part].__getitems__(range(9))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda s: {"coeffs": s.coeffs[:-1]}, r"field 'coeffs' has .*\(19,\), expected .*\(20,\)"),
        (lambda s: {"gradient_label": s.gradient_label / 0}, "field 'gradient_label' is"),
        (lambda s: {"basis_function_ind": s.basis_function_ind.flip(0)}, "field 'basis_function_ind' contradicts"),
        (lambda s: {"atomic_numbers": torch.tensor([9, 1, 1])}, "9"),
    ],
)
def test_a_density_that_does_not_fit_the_basis_is_named(
    change: Any, error: str, make_sample: Any, basis_info: BasisInfo
) -> None:
    sample = make_sample(basis_info, np.random.default_rng(0), (8, 1, 1))
    train = [sample, changed(sample, **change(sample))]
    dataset = parts_of(WrappedData(train=train, val=[], basis_info=basis_info))["train"]
    assert torch.equal(dataset[0].coeffs, sample.coeffs)
    with pytest.raises((BatchError, BasisError), match=rf"sample 1 of the train data.*{error}"):
        _ = dataset[1]


def test_samples_marked_as_unlabelled_need_no_labels() -> None:
    sample = changed(molecules(1)[0], force=None, y=torch.tensor(torch.nan), has_energy_label=torch.tensor([False]))
    assert parts_of(WrappedData(train=[sample], val=[], **OPTIONS))["train"][0].y.isnan().all()


def test_indices_that_other_packages_lack_are_added(make_sample: Any, basis_info: BasisInfo) -> None:
    class Strict(Data):
        def __setattr__(self, name: str, value: Any) -> None:  # as a package that logs fields that it does not know
            assert name != "basis_info"
            super().__setattr__(name, value)

    sample = make_sample(basis_info, np.random.default_rng(0), (6, 1, 8))
    names = ("pos", "atomic_numbers", "coeffs", "gradient_label", "energy_label")
    bare = Strict(**{name: sample[name] for name in names})
    found = parts_of(WrappedData(train=[bare], val=[], basis_info=basis_info))["train"][0]
    for name in ("atom_ind", "basis_function_ind"):
        assert torch.equal(found[name], sample[name])
    assert found.basis_info == basis_info


# --- data modules -----------------------------------------------------------------------------------------------------


def datamodule(**loaders: Callable[[], Any]) -> Any:
    """A data module with these loaders; its methods have no module, as in a class that `exec` made."""
    hooks: dict[str, Any] = {f"{part}_dataloader": lambda _, make=make: make() for part, make in loaders.items()}
    for hook in hooks.values():
        hook.__module__ = None
    return type("Theirs", (LightningDataModule,), hooks)()


class OwnLoaders(LightningDataModule):
    """Sets up parts by stage, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.parts: dict[str, Any] = {}

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str | None = None) -> None:
        self.calls.append(str(stage))
        torch.ones(1, requires_grad=True).sum().backward()  # as modules that compute something
        new = {"train": molecules(9), "val": molecules(4, 1)} if stage == "fit" else {"test": molecules(3, 2)}
        self.parts.update(new)

    def teardown(self, stage: str) -> None:
        self.calls.append(f"end of {stage}")

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts["train"], batch_size=4, shuffle=True)

    def val_dataloader(self) -> Any:
        return [DataLoader(self.parts["val"], batch_size=4)]

    def test_dataloader(self) -> Any:
        return DataLoader(self.parts["test"], batch_size=4)


class RandomSplit(OwnLoaders):
    """Divides its data anew in every setup, whatever the stage, as Lightning's documentation does."""

    def setup(self, stage: str | None = None) -> None:
        self.parts = dict(zip(("train", "val", "test"), random_split(molecules(30), [18, 6, 6]), strict=True))


def test_a_data_module_is_set_up_once_for_each_stage() -> None:
    theirs, trainer = OwnLoaders(), object()
    source = WrappedData(theirs, **OPTIONS)
    parts = parts_of(source)
    source.prepare_data()
    with torch.inference_mode():
        source.setup("fit", trainer)
    assert theirs.trainer is trainer
    assert parts.names() == ["train", "val", "test"]
    loaders: list[Any] = [parts.loader("train"), parts.loader("val")]
    assert [len(parts["train"]), len(parts["val"])] == [9, 4]
    assert (source.is_set_up("val"), source.is_set_up("test")) == (True, False)  # Lightning sets the test stage up
    source.setup("fit", trainer)
    assert theirs.calls == ["prepare", "fit"]
    assert [len(list(loader)) for loader in loaders] == [3, 1]
    assert len(parts["test"]) == 3  # outside of a run: it was not set up
    assert theirs.calls == ["prepare", "fit", "test"]
    source.teardown("fit")
    source.setup("fit", trainer)  # the next run, as Lightning does
    assert theirs.calls[-2:] == ["end of fit", "fit"]


def test_a_module_that_splits_at_random_has_one_split() -> None:
    source = WrappedData(RandomSplit(), **OPTIONS)
    source.setup(None, None)
    parts = parts_of(source)
    found = [{int(sample.number) for sample in parts[part]} for part in parts.names()]
    assert found == [{int(n) for batch in parts.loader(part) or () for n in batch.number} for part in parts.names()]
    assert len(set.union(*found)) == 30


def test_a_subset_of_a_sampler_trains_alone() -> None:
    theirs = datamodule(train=lambda: DataLoader(molecules(10), sampler=SubsetRandomSampler([7, 2, 5])))
    assert [int(sample.number) for sample in parts_of(WrappedData(theirs, **OPTIONS))["train"]] == [7, 2, 5]


def test_batches_of_a_wrapped_loader_are_converted() -> None:
    class InHartree(WrappedData):
        unit = "hartree"

    def loader() -> Any:
        return DataLoader(molecules(4), batch_size=2)

    theirs = InHartree(datamodule(train=loader), **OPTIONS)
    for batch, expected in zip(DataParts(theirs, SplitConfig(), [], "eV").loader("train") or (), loader(), strict=True):
        for name in ("y", "force"):
            torch.testing.assert_close(batch[name], expected[name] * find_factor("hartree", "eV"))


def test_other_loaders_than_expected_are_refused() -> None:
    with pytest.raises(SplitError, match="Theirs has no train_dataloader"):
        parts_of(WrappedData(datamodule(test=list))).names()
    streaming = datamodule(train=lambda: iter(molecules(2)), val=lambda: TorchLoader(molecules(2), batch_size=None))
    parts = parts_of(WrappedData(streaming, energy_field="y"))
    for part, kind in (("train", "list_iterator"), ("val", "DataLoader")):
        with pytest.raises(SplitError, match=rf"Theirs\.{part}_dataloader\(\) returned a {kind}"):
            _ = parts[part]
    bad = [changed(m, y=m.y / 0, mol_id="CO") for m in molecules(2)]
    checked = parts_of(WrappedData(datamodule(train=lambda: DataLoader(bad)), **OPTIONS)).loader("train")
    with pytest.raises(BatchError, match=r"a sample of the train data \(molecule 'CO'\): field 'y' is"):
        list(checked or ())


# --- the whole way ----------------------------------------------------------------------------------------------------


class InMemory(InMemoryDataset):
    def __init__(self, data: list[Data]) -> None:
        super().__init__()
        self.data, self.slices = self.collate(data)


@pytest.mark.parametrize(("kind", "apply"), [("in_memory", "batch"), ("random_split", "dataset"), ("divided", "batch")])
def test_no_sample_trains_and_validates_and_labels_come_back(kind: str, apply: Any) -> None:
    options: dict[str, Any] = {**OPTIONS, "energy_scale": "std", "dtype": "float64", "apply": apply}
    data = molecules(30)
    parts = {"train": InMemory(data[:18]), "val": InMemory(data[18:24]), "test": InMemory(data[24:])}
    divided = {"train": data, "split": SplitConfig(0.6, 0.2, 0.2)}
    given: Any = {"in_memory": parts, "random_split": {"datamodule": RandomSplit()}, "divided": divided}[kind]
    module = OFDFTDataModule.wrap(**given, **options)
    module.setup("fit")
    loaders: dict[str, Any] = {"train": module.train_dataloader(), "val": module.val_dataloader()}
    module.setup("test")
    loaders["test"] = module.test_dataloader()
    seen: dict[str, list[int]] = {}
    for part, loader in loaders.items():
        batches = [module.on_after_batch_transfer(batch, 0) for batch in loader]
        seen[part] = [int(n) for batch in batches for n in batch.number]
        for batch in batches:
            assert batch.normalized.all()
            expected = [data[int(n)] for n in batch.number]
            energies = module.normalizer.denormalize_energy(batch.y, batch).reshape(-1)
            torch.testing.assert_close(energies, torch.cat([m.y.reshape(-1) for m in expected]))
            forces = module.normalizer.denormalize_forces(batch.force, batch)
            torch.testing.assert_close(forces, torch.cat([m.force for m in expected]))
    assert [len(numbers) for numbers in seen.values()] == [18, 6, 6]
    assert not set(seen["train"]) & set(seen["val"])  # a module that ignores the stage divides anew to test
    train = [data[i] for i in sorted(seen["train"])]
    counts = np.array([[(m.z == z).sum().item() for z in (1, 6, 8)] for m in train], dtype=float)
    labels = np.array([float(m.y) for m in train])
    solution = np.linalg.lstsq(counts, labels, rcond=None)[0]
    references = module.normalizer.reference.element_references[[1, 6, 8]]
    np.testing.assert_allclose(references, solution, rtol=0, atol=1e-10)
    assert float(module.normalizer.energy_scale) == pytest.approx((labels - counts @ solution).std(), rel=1e-9)


def test_densities_of_other_packages_are_normalised_as_ours(tmp_path: Path) -> None:
    options: dict[str, Any] = {"dtype": "float64", "pre_transforms": [ProjectGradient()]}
    options["loader"] = LoaderConfig(batch_size=8, shuffle=False)
    split = SplitConfig(0.1, 0.05, 0.85)
    statistics = [StatisticsConfig(dir=str(tmp_path / name), progress=False) for name in ("ours", "theirs")]
    ours = OFDFTDataModule(split=split, statistics=statistics[0], **options)
    parts = DataParts(EmbeddedLabels(), split, [])
    data = {part: list(parts[part]) for part in ("train", "val")}
    options |= {"reference": AtomRefConfig(), "rescaling": RescalingConfig(), "basis_info": ours.basis_info}
    modules = [ours, OFDFTDataModule.wrap(**data, statistics=statistics[1], **options)]
    for module in modules:
        module.setup("fit")
    assert modules[1].fingerprint is None  # a list may change: its statistics are fitted each time
    for loader in ("train_dataloader", "val_dataloader"):
        for a, b in zip(*(getattr(module, loader)() for module in modules), strict=True):
            for field in ("coeffs", "gradient_label", "energy_label", "energy_reference", "dual_basis_integrals"):
                torch.testing.assert_close(a[field], b[field], rtol=1e-9, atol=1e-9)
    before = modules[1].statistics["has_energy_label"].n_samples
    data["train"].append(data["train"][-1])
    modules[1].setup("fit")
    assert modules[1].statistics["has_energy_label"].n_samples == before + 1
