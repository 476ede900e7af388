"""Frames of extended XYZ files, databases and trajectories: the same samples from all, and bad ones are named."""

import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.stress import voigt_6_to_full_3x3_stress
from torch_geometric.data import Data

from ofdft_norm import Normalizer, OFDFTDataModule
from ofdft_norm.config import LinearReferencesConfig, StatisticsConfig
from ofdft_norm.data.ase import ASEFiles, AtomsCheck
from ofdft_norm.data.sources import SampleDataset
from ofdft_norm.data.split import SplitConfig
from ofdft_norm.errors import BatchError, ConfigError, LabelFileError, SplitError
from tests import processes

NAMES = ("H2O", "CH4", "NH3", "CO2", "H2")
ALL = SplitConfig(1.0, 0.0, 0.0)


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


def train(source: ASEFiles, split: SplitConfig = ALL) -> Any:
    return source.open("train", source.parts(split)["train"], [])


def everything(source: ASEFiles) -> Any:
    return source.open("all", source.everything(), [])


def assert_samples_of(dataset: Any, expected: list[Atoms], order: list[int]) -> None:
    assert len(dataset) == len(order)
    for sample, i in zip(dataset, order, strict=True):
        atoms = expected[i]
        assert sample.atomic_numbers.tolist() == atoms.numbers.tolist()
        np.testing.assert_allclose(sample.pos, atoms.positions, rtol=0, atol=1e-8)
        assert float(sample.energy) == pytest.approx(atoms.get_potential_energy(), rel=1e-8)
        np.testing.assert_allclose(sample.forces, atoms.get_forces(), rtol=0, atol=1e-7)
        assert sample.has_energy_label.all()
        assert sample.cell.shape == (1, 3, 3)


def write_frames(path: Path, atoms: list[Atoms]) -> Path:
    """Writes under a name that ASE itself would take apart at an @."""
    if path.suffix in (".db", ".json"):
        with ase.db.connect(path) as database:
            for frame in atoms:
                database.write(frame, key_value_pairs={"split": frame.info["split"]})
    else:
        with path.open("wb" if path.suffix == ".traj" else "w") as file:
            write(file, atoms, format="traj" if path.suffix == ".traj" else "extxyz")
    return path


@pytest.mark.parametrize(
    "name", ["data.xyz", "data.extxyz", "data.db", "data.traj", "data.json", "z@3.json", "z@3.xyz", "d[1].xyz"]
)
def test_every_format_and_name_gives_the_same_samples(tmp_path: Path, name: str) -> None:
    for other in ("z", "d1.xyz"):  # ASE could read these instead
        (tmp_path / other).write_text("another file")
    path = write_frames(tmp_path / name, frames())
    dataset = everything(ASEFiles(str(path)))
    assert_samples_of(dataset, frames(), list(range(15)))
    assert dataset[3].mol_id == f"{path}@3"
    assert dataset.elements() == {1, 6, 7, 8}


def test_frames_are_divided_by_file_by_key_and_at_random(tmp_path: Path) -> None:
    first, second = frames(15, 0), frames(10, 1)
    a, b = (str(write_frames(tmp_path / name, f)) for name, f in (("a.xyz", first), ("b.db", second)))
    source = ASEFiles(a, val=b)
    parts = source.parts(SplitConfig())
    assert list(parts) == ["train", "val"]
    assert_samples_of(source.open("train", parts["train"], []), first, list(range(15)))
    assert_samples_of(source.open("val", parts["val"], []), second, list(range(10)))
    for path, atoms in ((a, first), (b, second)):
        source = ASEFiles([path], split_key="split")
        parts = source.parts(SplitConfig())
        for part, name in (("train", "train"), ("val", "valid"), ("test", "test")):
            order = [i for i, f in enumerate(atoms) if f.info["split"] == name]
            assert_samples_of(source.open(part, parts[part], []), atoms, order)
    drawn = ASEFiles([a, b]).parts(SplitConfig(0.6, 0.2, 0.2))
    places = [place for part in drawn.values() for place in part]
    assert sorted(places) == sorted([f"{a}@{i}" for i in range(15)] + [f"{b}@{i}" for i in range(10)])
    assert [len(part) for part in drawn.values()] == [15, 5, 5]


def test_labels_of_other_names_are_found(tmp_path: Path) -> None:
    expected = frames()
    path = write_frames(tmp_path / "data.xyz", expected)
    for i, sample in enumerate(everything(ASEFiles(str(path), energy="e_other", forces="f_other"))):
        assert float(sample.energy) == pytest.approx(expected[i].get_potential_energy() / 2, rel=1e-8)
        np.testing.assert_allclose(sample.forces, expected[i].get_forces() / 2, rtol=0, atol=1e-7)
    with ase.db.connect(tmp_path / "data.db") as database:
        database.write(expected[0], key_value_pairs={"e_other": 3.0})
    assert float(everything(ASEFiles(str(tmp_path / "data.db"), energy="e_other"))[0].energy) == 3.0


def test_stress_is_read_in_the_order_and_sign_of_ase(tmp_path: Path) -> None:
    stress = np.array([0.1, 0.2, 0.3, 0.04, 0.05, 0.06])
    periodic, slab, alone = bulk("Cu"), bulk("Cu"), molecule("H2O")
    slab.pbc = (True, True, False)
    for atoms in (periodic, slab, alone):
        results = {"stress": stress} if atoms is periodic else {}
        atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.zeros((len(atoms), 3)), **results)
        atoms.info["REF_stress"] = voigt_6_to_full_3x3_stress(2 * stress)
    write(tmp_path / "data.xyz", [periodic, slab, alone])
    nan = np.full(6, np.nan)
    for key, factor in (("stress", 1), ("REF_stress", 2)):
        samples = everything(ASEFiles(str(tmp_path / "data.xyz"), stress=key))
        found = np.concatenate([sample.stress for sample in samples])
        np.testing.assert_allclose(found, [factor * stress, nan, nan], rtol=1e-8)
    periodic.calc = SinglePointCalculator(periodic, energy=1.0, forces=np.zeros((1, 3)))
    with pytest.raises(LabelFileError, match=r"lacks 'stress'; it has \['REF_stress'\].*data\.source\.stress"):
        AtomsCheck("energy", "forces", stress="stress")(periodic, "a frame")
    normalizer = Normalizer(energy_scale=4.0, energy_field="energy", forces_field="forces", stress_field="stress")
    batch = normalizer.normalize(samples.__getitems__([0, 2]))
    np.testing.assert_allclose(batch.stress, [stress / 2, nan], rtol=1e-8)
    np.testing.assert_allclose(normalizer.denormalize_stress(batch.stress, batch), [2 * stress, nan], rtol=1e-8)
    as_pyg = Data(z=[29], pos=np.zeros((1, 3)), cell=np.eye(3), y=1.0, s=voigt_6_to_full_3x3_stress(stress))
    np.testing.assert_array_equal(AtomsCheck("y", None, stress="s")(as_pyg, "a sample").s, [stress])
    as_pyg.s = stress[:5]
    with pytest.raises(BatchError, match=r"field 's' has shape \(5,\), expected 6 numbers"):
        AtomsCheck("y", None, stress="s")(as_pyg, "a sample")


def isolated(symbol: str, energy: float, **info: Any) -> Atoms:
    atoms = Atoms(symbol, cell=[9, 9, 9], pbc=bool(info), info=info)
    atoms.calc = SinglePointCalculator(atoms, energy=energy)  # no forces
    return atoms


def module_of(path: Path, isolated_atoms: Any = "fit") -> OFDFTDataModule:
    statistics = StatisticsConfig(dir=str(path.parent), progress=False)
    reference = LinearReferencesConfig(isolated_atoms=isolated_atoms)
    return OFDFTDataModule.from_ase(str(path), reference=reference, statistics=statistics, split=ALL)


@pytest.mark.parametrize("name", ["data.xyz", "data.db"])
def test_isolated_atoms_give_references_and_leave_the_parts(tmp_path: Path, name: str) -> None:
    atoms = [isolated("H", -13.0), isolated("O", -2000.0, config_type="IsolatedAtom"), isolated("Ar", -9.0)]
    crystal = bulk("H", "sc", a=2.0)  # one atom, and no isolated one
    crystal.calc = SinglePointCalculator(crystal, energy=-15.0, forces=np.zeros((1, 3)))
    molecules = [*frames(), crystal]
    if name == "data.db":
        with ase.db.connect(tmp_path / name) as database:
            for frame in atoms + molecules:
                database.write(frame, key_value_pairs=frame.info if "config_type" in frame.info else {})
    else:
        write(tmp_path / name, atoms + molecules)
    module = module_of(tmp_path / name)
    module.setup("fit")
    assert len(module.datasets["train"]) == len(molecules)

    counts = np.array([[list(m.numbers).count(z) for z in (1, 6, 7, 8)] for m in molecules])
    energies = np.array([m.get_potential_energy() for m in molecules])
    rest = energies - counts @ [-13.0, 0.0, 0.0, -2000.0]
    c, n = np.linalg.lstsq(counts[:, 1:3], rest, rcond=None)[0]
    references: Any = module.normalizer.reference
    found = references.element_references[[1, 6, 7, 8, 18]].tolist()
    assert found == [-13.0, pytest.approx(c), pytest.approx(n), -2000.0, -9.0]
    fitted = np.linalg.lstsq(counts, energies, rcond=None)[0]
    np.testing.assert_allclose(references.fit_report.fitted, fitted, rtol=1e-8)
    row = next(words for line in references.summary("eV").splitlines() if (words := line.split())[0] == "O")
    assert row[1:4] == ["-2000.000000", f"{fitted[3]:.6f}", f"{fitted[3] + 2000:+.3f}"]
    with pytest.raises(ConfigError, match=r"isolated atoms of \['H', 'O', 'Ar'\], but none of \['C', 'N'\]"):
        module_of(tmp_path / name, "error").setup("fit")


def test_isolated_atoms_that_are_missing_or_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "data.xyz", frames())
    with pytest.raises(SplitError, match=r"no isolated atoms.*data\.reference\.values"):
        module_of(path).setup("fit")
    write(path, [isolated("H", -13.0), isolated("H", -12.5), *frames()])
    with pytest.raises(LabelFileError, match=r"@0 and .*@1 have the energies -13\.0 and -12\.5"):
        module_of(path).setup("fit")


def test_results_of_another_geometry_are_no_labels() -> None:
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 1.2]], calculator=LennardJones())
    check = AtomsCheck("energy", "forces")
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    sample = check(atoms, "structure 0")
    assert float(sample.energy) == energy
    np.testing.assert_array_equal(sample.forces, forces)
    atoms.positions[0, 0] = 0.1
    with pytest.raises(LabelFileError, match="structure 0: lacks 'energy'"):
        check(atoms, "structure 0")


# frames of 3, 5, 4, 3 and 2 atoms come first: the first atom of frame 5, an oxygen, is in line 29, counted from 0
@pytest.mark.parametrize(
    ("line", "change", "expected"),
    [
        (27, lambda x: "0", ":28: begins with '0', expected the number of atoms of a frame"),
        (28, lambda x: x.replace("energy=", "Energie="), "@5: lacks 'energy'; it has ['Energie', 'e_other']; did you"),
        (28, lambda x: re.sub("energy=[^ ]*", "energy=1e300", x), "@5: field 'energy' is 1e+300 at entry [0]"),
        (29, lambda x: "O 1 2", "@5: ASE cannot read this"),
        (29, lambda x: f"{x.rsplit(maxsplit=1)[0]} nan", "@5: field 'forces' is nan at entry [0, 2], expected finite"),
        (29, lambda x: f"X{x[1:]}", "@5: field 'atomic_numbers' has shape (3,) and the wrong values [0], expected"),
        (31, lambda x: None, "@5: ASE cannot read this: EOFError: the file ends within this frame"),
        (29, lambda x: f"{x}\n{x}", ":33: begins with 'H"),
        (28, lambda x: f"{x} name=\udcff", "@5: ASE cannot read this: UnicodeDecodeError"),
    ],
)
def test_a_bad_frame_is_named(tmp_path: Path, line: int, change: Callable[[str], Any], expected: str) -> None:
    path = tmp_path / "data.xyz"
    write(path, frames(6), columns=["symbols", "positions", "forces"])
    lines = path.read_text().splitlines()
    lines[line] = change(lines[line])
    text = "\n".join(text for text in lines if text is not None) + "\n"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises((LabelFileError, BatchError), match=re.escape(f"{path}{expected}")):
        list(train(ASEFiles(str(path))))


def test_frames_without_labels_can_be_predicted(tmp_path: Path) -> None:
    write(tmp_path / "bare.xyz", [molecule("H2O"), *frames(2)])
    source = ASEFiles(str(tmp_path / "bare.xyz"))
    dataset = everything(source)
    assert [bool(sample.has_energy_label) for sample in dataset] == [False, True, True]
    assert dataset[0].forces.isnan().all()
    with pytest.raises(LabelFileError, match=r"@0: lacks 'energy'; it has no value .*data\.source\.energy"):
        list(train(source))


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.xyz"
    with pytest.raises(ConfigError, match=r"data.xyz: no regular file there \(config: data.source.paths"):
        ASEFiles(str(path)).parts(ALL)
    os.mkfifo(path)  # opening it would wait for a writer
    with pytest.raises(ConfigError, match=r"data.xyz: no regular file"):
        ASEFiles(str(path)).parts(ALL)
    path.unlink()
    write_frames(path, frames(4))
    with pytest.raises(SplitError, match=r"data.source: files that are listed twice.*(?s:.*)in train and val"):
        ASEFiles(str(path), val=str(tmp_path / "*.xyz")).parts(ALL)
    with pytest.raises(SplitError, match=r"data.xyz@0: info\['spilt'\] is None.*did you mean 'split'"):
        ASEFiles(str(path), split_key="spilt").parts(ALL)
    with pytest.raises(ConfigError, match=r"data.split.file lists label files, not frames"):
        ASEFiles(str(path)).parts(SplitConfig(file="split.yaml"))
    with pytest.raises(ConfigError, match="give only one"):
        ASEFiles(str(path), val=str(path), split_key="split")
    (tmp_path / "empty.xyz").write_text("\n")
    with pytest.raises(LabelFileError, match=r"empty.xyz: has no frame"):
        ASEFiles(str(tmp_path / "empty.xyz")).everything()
    write_frames(tmp_path / "data.traj", [*frames(2), Atoms(info={"split": "train"})])
    for read in (list, SampleDataset.elements):  # of held-out parts, elements are read before training
        with pytest.raises(LabelFileError, match=r"data.traj@2: has no atoms"):
            read(everything(ASEFiles(str(tmp_path / "data.traj"))))


# --- files that change ------------------------------------------------------------------------------------------------


def read_all(dataset: Any) -> list[float]:
    return [float(sample.energy) for sample in dataset]


@pytest.mark.parametrize("name", ["data.xyz", "data.traj", "data.db"])
def test_other_frames_than_those_that_were_counted_are_never_read(tmp_path: Path, name: str) -> None:
    path = write_frames(tmp_path / name, frames(8))
    source = ASEFiles(str(path))
    dataset = train(source)
    before = read_all(dataset)
    assert processes.in_new_process(read_all, dataset) == before
    state = dataset.state()
    path.unlink()
    write_frames(path, frames(8, seed=1))
    if name == "data.db":
        with pytest.raises(LabelFileError, match=r"data\.db: has changed since its frames were counted"):
            read_all(dataset)
    else:
        assert read_all(dataset) == before  # kept in memory
    with pytest.raises(LabelFileError, match=f"{name}: has changed since its frames were counted"):
        processes.in_new_process(read_all, dataset)
    again = train(source)  # a new setup
    assert read_all(again) != before
    assert again.state() != state


def test_a_database_in_wal_mode_is_recognised_by_its_log(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "data.db", frames(4))
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode=WAL")
    dataset = train(ASEFiles(str(path)))
    before = dataset.state()
    assert len(read_all(dataset)) == 4
    writer.execute("UPDATE systems SET energy = 5.0")
    writer.commit()  # into data.db-wal
    assert dataset.state() != before
    with pytest.raises(LabelFileError, match="has changed"):
        read_all(dataset)
    writer.close()


def test_the_state_tells_frames_of_files_with_one_name_apart(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        write_frames(tmp_path / folder / "d.xyz", frames(2, seed))
    source: Any = ASEFiles(str(tmp_path / "?/d.xyz"))
    members = source.everything()
    states = [source.open("train", [members[i] for i in pair], []).state() for pair in ((0, 3), (2, 1), (0, 3))]
    assert states[0] == states[2] != states[1]
