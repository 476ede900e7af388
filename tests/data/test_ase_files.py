"""Extended XYZ files, databases and trajectories: the same samples whatever the format, and bad frames are named."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import ase.units
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ofdft_norm import OFDFTDataModule
from ofdft_norm.config import ASEFiles, SplitConfig, StatisticsConfig
from ofdft_norm.config.readable_errors import config_dir
from ofdft_norm.data.ase_files import ASEDataset
from ofdft_norm.data.ase_frames import open_frames
from ofdft_norm.errors import BatchError, ConfigError, LabelFileError, SplitError

NAMES = ("H2O", "CH4", "NH3", "CO2", "H2")


def frames(n: int = 15, seed: int = 0) -> list[Atoms]:
    """Shaken molecules with random labels, and labels of other names beside them."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        atoms = molecule(NAMES[i % len(NAMES)])
        atoms.rattle(0.05, rng=rng)
        energy = float(-27.2 * atoms.numbers.sum() + rng.normal())
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=rng.normal(size=(len(atoms), 3)))
        atoms.info |= {"split": ("train", "train", "train", "valid", "test")[i % 5], "e_other": energy / 2}
        atoms.arrays["f_other"] = atoms.get_forces() / 2
        out.append(atoms)
    return out


def assert_samples_of(dataset: Any, expected: list[Atoms], order: list[int], factor: float = 1.0) -> None:
    assert len(dataset) == len(order)
    for sample, i in zip((dataset[k] for k in range(len(dataset))), order, strict=True):
        atoms = expected[i]
        assert sample.atomic_numbers.tolist() == atoms.numbers.tolist()
        np.testing.assert_allclose(sample.pos, atoms.positions, rtol=0, atol=1e-8)
        assert float(sample.energy) == pytest.approx(factor * atoms.get_potential_energy(), rel=1e-8)
        np.testing.assert_allclose(sample.forces, factor * atoms.get_forces(), rtol=0, atol=1e-7)
        assert sample.has_energy_label.all()


@pytest.mark.parametrize("name", ["data.xyz", "data.extxyz", "data.db", "data.traj", "data.json"])
def test_every_format_gives_the_same_samples(tmp_path: Path, name: str) -> None:
    expected = frames()
    write(tmp_path / name, expected)
    source = ASEFiles(str(tmp_path / name))
    dataset = source.everything(None)
    assert_samples_of(dataset, expected, list(range(15)))
    assert dataset[3].mol_id == f"{tmp_path / name}@3"
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[7].pos, dataset[7].pos)


def test_frames_are_divided_by_file_by_key_and_at_random(tmp_path: Path) -> None:
    first, second = frames(15, 0), frames(10, 1)
    a, b = str(tmp_path / "a.xyz"), str(tmp_path / "b.db")
    write(a, first)
    write(b, second)
    by_file = ASEFiles(a, val=b).datasets(SplitConfig(), None)
    assert list(by_file) == ["train", "val"]
    assert_samples_of(by_file["train"], first, list(range(15)))
    assert_samples_of(by_file["val"], second, list(range(10)))
    by_key = ASEFiles([a], split_key="split").datasets(SplitConfig(), None)
    for part, names in (("train", ("train",)), ("val", ("valid",)), ("test", ("test",))):
        assert_samples_of(by_key[part], first, [i for i, f in enumerate(first) if f.info["split"] in names])
    drawn = ASEFiles([a, b]).datasets(SplitConfig(train=0.6, val=0.2, test=0.2), None)
    places = [place for part in drawn.contents.values() for place in part]
    assert sorted(places) == sorted([f"{a}@{i}" for i in range(15)] + [f"{b}@{i}" for i in range(10)])
    assert [len(part) for part in drawn.contents.values()] == [15, 5, 5]


def test_labels_of_other_names_and_units_are_converted(tmp_path: Path) -> None:
    expected = frames()
    write(tmp_path / "data.xyz", expected)
    with ase.db.connect(tmp_path / "data.db") as database:
        database.write(expected[0], key_value_pairs={"e_other": 3.0})
    datamodule = OFDFTDataModule.from_ase(
        str(tmp_path / "data.xyz"), energy="e_other", forces="f_other", split_key="split", unit="hartree"
    )
    train = [i for i, f in enumerate(expected) if f.info["split"] == "train"]
    assert_samples_of(datamodule.raw_datasets["train"], expected, train, 0.5 / ase.units.Hartree)
    assert float(ASEFiles(str(tmp_path / "data.db"), energy="e_other").everything(None)[0].energy) == 3.0


def test_a_list_of_atoms_is_wrapped_as_the_file_is_read(tmp_path: Path) -> None:
    atoms = frames(30)
    write(tmp_path / "data.xyz", atoms)
    modules = [
        OFDFTDataModule.wrap(train=atoms[:20], test=atoms[20:], forces_field="forces", energy_scale="std"),
        OFDFTDataModule.from_ase(str(tmp_path / "data.xyz"), energy_scale="std", split=SplitConfig(1.0, 0.0, 0.0)),
    ]
    assert [datamodule.unit for datamodule in modules] == ["eV", "eV"]
    modules[0].setup("fit")
    counts = np.array([[(a.numbers == z).sum() for z in (1, 6, 7, 8)] for a in atoms[:20]])
    energies = np.array([a.get_potential_energy() for a in atoms[:20]])
    solution = np.linalg.lstsq(counts, energies, rcond=None)[0]
    normalizer = modules[0].normalizer
    np.testing.assert_allclose(normalizer.reference.element_references[[1, 6, 7, 8]], solution, rtol=1e-9)
    assert float(normalizer.energy_scale) == pytest.approx((energies - counts @ solution).std(), rel=1e-9)
    batch = next(iter(modules[0].test_dataloader()))
    expected = torch.cat([torch.as_tensor(a.get_forces()) for a in atoms[20:]])
    torch.testing.assert_close(normalizer.denormalize_forces(batch.forces, batch), expected, rtol=1e-5, atol=1e-6)
    modules[1].setup("fit")
    batch = next(iter(modules[1].train_dataloader()))
    assert batch.num_graphs == 30
    assert batch.normalized.all()


def test_results_of_another_geometry_are_no_labels() -> None:
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 1.2]], calculator=LennardJones())
    with pytest.raises(LabelFileError, match="structure 0: lacks 'energy'"):
        ASEDataset([atoms])[0]
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    sample = ASEDataset([atoms])[0]
    assert float(sample.energy) == energy
    np.testing.assert_array_equal(sample.forces, forces)
    atoms.positions[0, 0] = 0.1
    with pytest.raises(LabelFileError, match="structure 0: lacks 'energy'"):
        ASEDataset([atoms])[0]


# frames of 3, 5, 4, 3 and 2 atoms come first: the first atom of frame 5, an oxygen, is in line 29, counted from 0
@pytest.mark.parametrize(
    ("line", "change", "expected"),
    [
        (28, lambda x: x.replace("energy=", "Energie="), "@5: lacks 'energy'; it has ['Energie', 'e_other']; did you"),
        (29, lambda x: f"Q{x[1:]}", "@5: ASE cannot read this: KeyError: 'Q'"),
        (29, lambda x: "O 1 2", "@5: ASE cannot read this"),
        (29, lambda x: f"{x.rsplit(maxsplit=1)[0]} nan", "@5: 'forces' is nan at atom 0, component 2, expected finite"),
        (29, lambda x: f"X{x[1:]}", "@5: numbers is 0 at atom 0, expected atomic numbers 1 ... 118"),
        (29, lambda x: " ".join(["O inf", *x.split()[2:]]), "@5: positions is inf at atom 0, component 0"),
        (31, lambda x: None, "@5: the file ends within this frame"),
        (29, lambda x: f"{x}\n{x}", ":33: frame 6 begins with 'H"),
    ],
)
def test_a_bad_frame_is_named(tmp_path: Path, line: int, change: Callable[[str], Any], expected: str) -> None:
    path = tmp_path / "data.xyz"
    write(path, frames(6), columns=["symbols", "positions", "forces"])
    lines = path.read_text().splitlines()
    lines[line] = change(lines[line])
    path.write_text("\n".join(text for text in lines if text is not None) + "\n")
    with pytest.raises((LabelFileError, BatchError), match=re.escape(f"{path}{expected}")):
        list(ASEFiles(str(path)).datasets(SplitConfig(1.0, 0.0, 0.0), None)["train"])


def test_blank_lines_between_frames_end_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data.xyz"
    write(path, frames(2), columns=["symbols", "positions", "forces"])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], "\n", "\n", *lines[5:], "\n"]))
    assert_samples_of(ASEFiles(str(path)).everything(None), frames(2), [0, 1])


def test_only_the_frames_that_are_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "data.xyz")
    write(path, frames(9))
    opened: Any = open_frames(path, {})
    assert len(opened) == 9
    texts: list[int] = []
    read = type(opened)._text
    monkeypatch.setattr(type(opened), "_text", lambda self, i: texts.append(i) or read(self, i))
    assert opened.atoms(4).get_chemical_formula() == "H2"
    assert opened.info(2)["split"] == "train"
    assert texts == [4, 2]


def test_frames_without_labels_are_there_to_be_predicted(tmp_path: Path) -> None:
    bare = molecule("H2O")
    write(tmp_path / "bare.xyz", [bare, *frames(2)])
    source = ASEFiles(str(tmp_path / "bare.xyz"))
    dataset: Any = source.everything(None)
    assert [bool(sample.has_energy_label) for sample in dataset] == [False, True, True]
    assert dataset[0].forces.isnan().all()
    with pytest.raises(
        LabelFileError,
        match=r"@0: lacks 'energy'; it has no other value of its shape; .* \(argument energy, con",
    ):
        list(source.datasets(SplitConfig(1.0, 0.0, 0.0), None)["train"])


def test_what_a_source_lacks_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "data.xyz")
    with pytest.raises(ConfigError, match=r"data.xyz: no such file \(config: data.source.paths\)"):
        ASEFiles(path).datasets(SplitConfig(), None)
    write(path, frames(4))
    with pytest.raises(SplitError, match=r"data.xyz@0: info\['spilt'\] is None.*did you mean 'split'"):
        ASEFiles(path, split_key="spilt").datasets(SplitConfig(), None)
    with pytest.raises(ConfigError, match=r"data.split.file lists label files, not frames"):
        ASEFiles(path).datasets(SplitConfig(file="split.yaml"), None)
    with pytest.raises(ConfigError, match="give one of both"):
        ASEFiles(path, val=path, split_key="split")
    (tmp_path / "empty.xyz").write_text("\n")
    with pytest.raises(LabelFileError, match=r"empty.xyz: has no frame"):
        ASEFiles(str(tmp_path / "empty.xyz")).everything(None)


def test_the_config_reads_and_normalises_frames(tmp_path: Path) -> None:
    write(tmp_path / "data.xyz", frames(30))
    overrides = ["data/source=ase", f"data.source.paths={tmp_path / 'data.xyz'}", "data/reference=linear"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", [*overrides, "data/rescaling=none", "data.unit=eV", "data.statistics.progress=false"])
    datamodule = instantiate(config.data)
    datamodule.setup("fit")
    assert datamodule.normalizer.unit == "eV"
    assert [len(datamodule.datasets[part]) for part in ("train", "val", "test")] == [24, 3, 3]
    assert next(iter(datamodule.val_dataloader())).normalized.all()


def test_a_checkpoints_split_holds_when_frames_are_added(tmp_path: Path) -> None:
    path = tmp_path / "data.xyz"
    write(path, frames(20))
    before = OFDFTDataModule.from_ase(str(path))
    before.setup("fit")
    state = before.state_dict()
    expected = dict(before.raw_datasets._opened().contents)
    write(path, frames(25))
    after = OFDFTDataModule.from_ase(str(path))
    after.load_state_dict(state)
    assert dict(after.raw_datasets._opened().contents) == {part: list(places) for part, places in expected.items()}


def test_statistics_of_files_are_kept_until_the_files_change(tmp_path: Path) -> None:
    path = tmp_path / "data.xyz"
    write(path, frames(20))

    def fitted(**options: Any) -> OFDFTDataModule:
        statistics = StatisticsConfig(dir=str(tmp_path / "cache"), progress=False)
        datamodule = OFDFTDataModule.from_ase(str(path), statistics=statistics, **options)
        datamodule.setup("fit")
        return datamodule

    first, again, in_hartree = fitted(), fitted(), fitted(unit="hartree")
    known = first.fingerprint
    assert known == again.fingerprint != in_hartree.fingerprint
    assert len(list((tmp_path / "cache").glob("*.zarr*"))) == 2
    write(path, frames(21))
    assert fitted().fingerprint != known
    with pytest.warns(UserWarning, match="the training labels have changed"):
        again.setup("fit")
    assert again.fingerprint != known


def test_atoms_in_memory_have_no_state() -> None:
    assert ASEDataset(frames(2)).state() is None
