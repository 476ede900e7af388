"""Sources of labels and samples: their members, their data sets, and their refusals."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.data.dataset import OFDataset
from ofdft_norm.data.pack import pack_labels
from ofdft_norm.data.sources import LabelFiles, PackedLabels, SampleFile, Source
from ofdft_norm.data.split import SplitConfig
from ofdft_norm.errors import BasisError, ConfigError, LabelFileError, SplitError
from ofdft_norm.transforms.project_gradient import ProjectGradient

SPLIT = SplitConfig(0.5, 0.2, 0.3, seed=3)


@pytest.fixture
def paths(labels: Any) -> list[Path]:
    """Nine molecules, in one folder."""
    numbers = [(8, 1, 1), (6, 1, 1, 1, 1), (6, 8, 1, 1)]
    return [labels.write(f"molecule_{i}.zarr.zip", numbers[i % 3], 3 + i % 3) for i in range(9)]


@pytest.fixture
def packed(paths: list[Path], basis_info: BasisInfo, tmp_path: Path) -> Path:
    return pack_labels(OFDataset(paths, basis_info), tmp_path / "packed", progress=False)


def parts_of(source: Source, split: SplitConfig = SPLIT, transforms: Any = ()) -> dict[str, Any]:
    return {part: source.open(part, members, transforms) for part, members in source.parts(split).items()}


# --- label files ------------------------------------------------------------------------------------------------------


def test_folders_files_and_patterns_list_the_same(paths: list[Path], basis_file: str) -> None:
    folder = paths[0].parent
    for given in (folder, [folder / "mol*"], paths[::-1], [folder, folder / "m*.zip"]):
        found = LabelFiles(list(map(str, given)) if isinstance(given, list) else str(given), basis_file).everything()
        assert found == list(map(str, paths))
    weird = folder / "set[1]@2"
    weird.mkdir()
    os.rename(paths[0], weird / "a[0].zarr.zip")
    for path in (weird, weird / "a[0].zarr.zip"):
        assert LabelFiles(str(path), basis_file).everything() == [str(weird / "a[0].zarr.zip")]


def test_the_split_decides_by_settings_files_and_content(paths: list[Path], basis_file: str, tmp_path: Path) -> None:
    source = LabelFiles(str(tmp_path), basis_file)
    file = tmp_path / "split.json"
    split = SplitConfig(file=str(file))
    identities = [source.split_identity(SPLIT), source.split_identity(split)]
    file.write_text(json.dumps({"train": [paths[0].name]}))
    identities.append(source.split_identity(split))
    identities.append(dataclasses.replace(source, exclude=[paths[1].name]).split_identity(SPLIT))
    assert len(set(identities)) == 4
    assert dataclasses.replace(source, energy_key="e_tot").split_identity(SPLIT) == identities[0]


def test_numbers_of_iterations_in_a_split_file_spare_headers(
    paths: list[Path], basis_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": [("", paths[0].name, 3), ("", paths[1].name, 4)]}))
    monkeypatch.setattr("ofdft_norm.data.dataset.read_header", lambda path: pytest.fail("was opened"))
    assert len(parts_of(LabelFiles(str(tmp_path), basis_file), SplitConfig(file=str(file)))["train"]) == 7


def test_missing_files_and_pipes_are_listed_when_a_part_is_used(
    paths: list[Path], basis_file: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.zarr.zip")  # opening it would wait for a writer
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ["gone.zarr", "pipe.zarr.zip", paths[0].name], "test": [paths[1].name]}))
    source = LabelFiles(str(tmp_path), basis_file)
    parts = source.parts(SplitConfig(file=str(file)))
    assert len(source.open("test", parts["test"], [])) == 4
    with pytest.raises(SplitError, match=r"missing label files of the train split: 2 .*(?s:.*)gone.*(?s:.*)pipe"):
        source.open("train", parts["train"], [])


# --- packed labels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("applied", [[], [ProjectGradient()]])  # a packed transform is not applied again
def test_parts_of_packed_labels_are_those_of_the_label_files(
    applied: Any, paths: list[Path], basis_info: BasisInfo, basis_file: str, tmp_path: Path, assert_same_fields: Any
) -> None:
    packed = pack_labels(OFDataset(paths, basis_info), tmp_path / "set", pre_transforms=applied, progress=False)
    options: dict[str, Any] = {"limit_scf_iterations": -2, "exclude": ["molecule_4.zarr.zip"]}
    files = LabelFiles(str(paths[0].parent), basis_file, **options)
    source = PackedLabels(str(packed), basis_file, **options)
    assert source.basis() == files.basis()
    expected, found = (parts_of(s, SPLIT, [ProjectGradient()]) for s in (files, source))
    assert list(found) == list(expected) == ["train", "val", "test"]
    for part in found:
        assert [p.name for p in found[part].paths] == [p.name for p in expected[part].paths]
        for a, b in zip(found[part], expected[part], strict=True):
            assert_same_fields(a, b)
        assert (found[part].transform is None) == bool(applied)
    assert [os.path.basename(p) for p in source.everything()] == [os.path.basename(p) for p in files.everything()]


def test_a_split_file_names_molecules_of_one_or_several_sets(
    packed: Path, paths: list[Path], basis_info: BasisInfo, labels: Any, tmp_path: Path
) -> None:
    others = [labels.write(path.name) for path in paths[:2]]  # other geometries under the same names
    other = pack_labels(OFDataset(others, basis_info), tmp_path / "QM9", progress=False)
    names, both = [path.name for path in paths], PackedLabels([str(packed), str(other)])

    def train(source: PackedLabels, *entries: Any) -> list[Path]:
        (tmp_path / "split.json").write_text(json.dumps({"train": entries, "val": [names[7]]}))
        return parts_of(source, SplitConfig(file=str(tmp_path / "split.json")))["train"].paths

    for source in (PackedLabels(str(packed)), both):
        assert train(source, names[5], names[2]) == [packed / names[5], packed / names[2]]
    assert train(both, ("QM9", names[0], 3)) == [other / names[0]]
    with pytest.raises(SplitError, match=r"'molecule_0.zarr.zip' .* fits 2 label files.*data\.split\.file"):
        train(both, names[0])
    with pytest.raises(SplitError, match=r"the train split: molecules that are not in the packed sets: 1"):
        train(both, "absent.zarr")


def test_packed_labels_that_do_not_fit_are_refused(packed: Path, basis_file: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no packed set .meta\.json. there.*data\.source\.paths"):
        PackedLabels(str(tmp_path / "absent*")).everything()
    Path(basis_file).write_text(json.dumps({"atomic_numbers": [1], "irreps_per_atom": ["1x0e"]}))
    with pytest.raises(BasisError, match=r"was packed in the basis .*data\.source\.basis_info"):
        PackedLabels(str(packed), basis_file).basis()
    content = bytearray((packed / "coeffs.npy").read_bytes())
    content[-1] ^= 1
    (packed / "coeffs.npy").write_bytes(content)
    PackedLabels(str(packed)).everything()
    with pytest.raises(LabelFileError, match=r"coeffs\.npy.* SHA-256"):
        PackedLabels(str(packed), verify=True).everything()


# --- samples without labels -------------------------------------------------------------------------------------------


@pytest.fixture
def samples(make_sample: Any, basis_info: BasisInfo) -> list[Any]:
    rng = np.random.default_rng(0)
    return [make_sample(basis_info, rng, numbers, f"m{len(numbers)}") for numbers in ((8, 1, 1), (6, 1), (1, 6, 8, 1))]


@pytest.fixture
def arrays(samples: list[Any]) -> dict[str, Any]:
    """Content of a file of these samples."""
    names = ("pos", "atomic_numbers", "coeffs", "dual_basis_integrals")
    found: dict[str, Any] = {name: np.concatenate([s[name].numpy() for s in samples]) for name in names}
    return found | {"n_atoms": np.array([len(s.pos) for s in samples]), "mol_id": np.array([s.mol_id for s in samples])}


def samples_of(path: Path, basis_file: str, arrays: dict[str, Any]) -> Any:
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    source = SampleFile(str(path), basis_file)
    assert source.parts(SPLIT) == {}
    return source.open("all", source.everything(), [])


@pytest.mark.parametrize("change", [{}, {"dual_basis_integrals": None, "mol_id": None, "coordinates": np.array("x")}])
def test_samples_of_a_file_are_those_that_were_written(
    change: dict[str, Any], samples: list[Any], arrays: dict[str, Any], basis_file: str, tmp_path: Path
) -> None:
    arrays["coeffs"] = arrays["coeffs"].astype(np.float32)
    dataset = samples_of(tmp_path / "samples.npz", basis_file, arrays | change)
    assert (len(dataset), dataset.elements()) == (3, {1, 6, 8})
    for i, (found, sample) in enumerate(zip(dataset, samples, strict=True)):
        assert torch.equal(found.coeffs, sample.coeffs.float().double())
        for name in ("pos", "atomic_numbers", "basis_function_ind"):
            assert torch.equal(found[name], sample[name])
        assert (found.mol_id, found.coordinates) == ((str(i), "x") if change else (sample.mol_id, "raw"))
        assert not found.has_energy_label
        assert change or torch.equal(found.dual_basis_integrals, sample.dual_basis_integrals)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("coeffs", lambda a: None, r"lacks the arrays \['coeffs'\]"),
        ("coeffs", lambda a: a[:-1], r"m4.*: field 'coeffs' has .*33.* expected .*34"),
        ("coeffs", lambda a: a * np.inf, r"\(molecule 'm3'\): field 'coeffs' is "),
        ("n_atoms", lambda a: a + 1, "'n_atoms' is not one positive integer for each sample, 9 atoms in all"),
        ("atomic_numbers", lambda a: a + 1, "the basis"),
    ],
)
def test_a_sample_file_that_does_not_fit_is_named(
    name: str, change: Any, expected: str, arrays: dict[str, Any], basis_file: str, tmp_path: Path
) -> None:
    arrays[name] = change(arrays[name])
    with pytest.raises((LabelFileError, ValueError), match=rf"samples\.npz.*{expected}"):
        list(samples_of(tmp_path / "samples.npz", basis_file, arrays))


def test_a_file_that_is_no_sample_file_is_named(basis_file: str, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_bytes(b"no zip")
    os.mkfifo(tmp_path / "pipe.npz")
    unreadable = "cannot be read as an npz file"
    for name, words in (("absent", unreadable), ("text", unreadable), ("pipe", "is no regular file")):
        source = SampleFile(str(tmp_path / f"{name}.npz"), basis_file)
        with pytest.raises(LabelFileError, match=rf"{name}\.npz: {words}"):
            source.open("all", source.everything(), [])
