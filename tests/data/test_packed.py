import json
import os
import pickle
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from ofdft_norm import (
    BasisInfo,
    BasisTransforms,
    LocalFrames,
    NaturalReparametrization,
    OFData,
    OFDataset,
    ProjectGradient,
)
from ofdft_norm.data import pack
from ofdft_norm.data import packed as packed_module
from ofdft_norm.data.files import hash_file
from ofdft_norm.data.identity import identify
from ofdft_norm.data.pack import pack_labels, verify_packed
from ofdft_norm.data.packed import PackedDataset, PackedSet, compute_meta_checksum, find_remaining_transforms
from ofdft_norm.errors import BasisError, ConfigError, LabelFileError


class Doubled:
    """A transform for single samples, which knows nothing of batches."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def __call__(self, sample: OFData) -> OFData:
        sample.twice = self.factor * sample.energy_label
        return sample


@pytest.fixture
def raw(paths: list[Path], basis_info: Any) -> OFDataset:
    return OFDataset(paths, basis_info)


@pytest.fixture
def packed(raw: OFDataset, tmp_path: Path) -> Path:
    return pack_labels(raw, tmp_path / "packed", ["kin", "tot"], progress=False)


# --- sets -------------------------------------------------------------------------------------------------------------


def test_a_set_describes_itself(packed: Path, basis_info: Any, labels: Any) -> None:
    found = PackedSet(packed, verify=True)
    assert found.basis_info == basis_info
    assert found.names() == ["water.zarr.zip", "methane.zarr", "formaldehyde.zarr.zip"]
    assert found.meta["sources"] == [str(packed.parent)]
    for molecule, arrays in enumerate(labels.written.values()):
        for values, name in zip(found.geometry(molecule), ("atom_pos", "atomic_numbers"), strict=True):
            np.testing.assert_array_equal(values, arrays[f"geometry/{name}"])
    assert not found.arrays["coeffs"].flags.writeable
    assert sorted(p.name for p in packed.iterdir()) == sorted([*(f"{n}.npy" for n in found.arrays), "meta.json"])


def save(name: str, make: Any) -> Any:
    """Damage to a set: an array is replaced; what ``meta.json`` states of it is corrected where it can be."""

    def damage(folder: Path) -> None:
        array = make(np.load(folder / f"{name}.npy"))
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
        meta = json.loads((folder / "meta.json").read_text())
        meta["arrays"][name]["shape"] = list(array.shape)
        (folder / "meta.json").write_text(json.dumps(meta | {"checksum": compute_meta_checksum(meta)}))

    return damage


def write(name: str, content: Any) -> Any:
    return lambda folder: (folder / name).write_bytes(content((folder / name).read_bytes()))


def change_meta(**changes: Any) -> Any:
    return write("meta.json", lambda data: json.dumps(json.loads(data) | changes).encode())


DAMAGE = {
    "missing": lambda folder: (folder / "coeffs.npy").unlink(),
    "short": write("coeffs.npy", lambda data: data[:-8]),
    "pickle": save("coeffs", lambda v: np.array([{}], dtype=object)),
    "other length": save("coeffs", lambda v: v[:-1]),
    "Fortran order": save("pos", np.asfortranarray),
    "offsets that do not ascend": save("atom_offsets", lambda v: v[[0, 2, 1, 3]]),
    "offsets that end early": save("sample_offsets", lambda v: np.minimum(v, 11)),
    "offsets of other functions": save("function_offsets", lambda v: v + np.array([0, 1, 0, 0])),
    "positions": save("pos", lambda v: v * np.nan),
    "elements": save("atomic_numbers", lambda v: v * 0 + 7),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "version": change_meta(version=1),
    "coordinates": change_meta(coordinates="natural_symmetric"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_set_is_refused_when_it_is_opened(damage: Any, packed: Path) -> None:
    damage(packed)
    with pytest.raises((LabelFileError, BasisError), match=r"packed.*data\.source\.") as error:
        PackedSet(packed)
    assert "\n" not in str(error.value)


def test_a_changed_number_is_found_by_its_digest_which_is_computed_once(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(packed_module, "hash_file", lambda path: (read.append(path.name), hash_file(path))[1])
    shutil.copytree(packed, tmp_path / "copy")
    for _ in range(3):
        PackedDataset([PackedSet(packed, verify=True)]).verify()
    assert len(read) == len(PackedSet(packed).arrays)
    path = tmp_path / "copy/grad_kin.npy"
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time stay
    for refused in (lambda: PackedSet(tmp_path / "copy", verify=True), PackedDataset([tmp_path / "copy"]).verify):
        with pytest.raises(LabelFileError, match=r"copy: grad_kin\.npy has changed"):
            refused()


def test_a_set_that_was_replaced_is_noticed_by_a_copy(packed: Path) -> None:
    opened = PackedSet(packed)
    content = pickle.dumps(opened)
    assert len(content) < 2000
    assert pickle.loads(content).names() == opened.names()
    os.utime(packed / "coeffs.npy", (1, 1))
    for copied in (content, pickle.dumps(opened)):
        with pytest.raises(LabelFileError, match="was replaced"):
            pickle.loads(copied)


# --- data sets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [None, ProjectGradient(), Doubled()])
@pytest.mark.parametrize(("limit", "target"), [(None, "kin"), ([2, 1], "tot"), (-2, "kin")])
def test_samples_and_batches_are_those_of_the_label_files(
    transform: Any, limit: Any, target: str, packed: Path, raw: OFDataset, basis_info: Any, assert_same_fields: Any
) -> None:
    settings: Any = {"transform": transform, "limit_scf_iterations": limit, "keep_initial_guess": False}
    settings |= {"energy_key": f"e_{target}", "gradient_key": f"grad_{target}"}
    expected, found = OFDataset(raw.paths, basis_info, **settings), PackedDataset([packed], **settings)
    assert found.sample_offsets.tolist() == expected.sample_offsets.tolist()
    assert found.elements() == expected.elements()
    for molecules in ([0], [1, 2], [2, 0, 1]):
        assert_same_fields(found.molecules(molecules), expected.molecules(molecules))
    for samples in ([0], [3, 0, 2, 2], range(len(found))):
        a, b = (d.__getitems__([i % len(found) for i in samples]) for d in (found, expected))
        assert_same_fields(a, b)
        for one, other in zip(a.to_data_list(), b.to_data_list(), strict=True):
            assert_same_fields(one, other)


def test_only_wanted_fields_are_read_and_copied(packed: Path) -> None:
    found = PackedDataset([packed]).molecules([0, 1], fields=["gradient_label"])
    assert {"coeffs", "gradient_label"} <= set(found.keys())
    assert not {"energy_label", "ground_state_coeffs", "dual_basis_integrals"} & set(found.keys())
    everything = PackedDataset([packed], transform=ProjectGradient()).molecules([0, 1], fields=["gradient_label"])
    assert "dual_basis_integrals" in everything
    before = found.coeffs.clone()
    found.coeffs.zero_()  # does not change the set
    assert torch.equal(PackedDataset([packed]).molecules([0, 1]).coeffs, before)


def test_several_sets_and_chosen_molecules(
    raw: OFDataset, basis_info: Any, tmp_path: Path, make_batch: Any, assert_same_fields: Any
) -> None:
    a, b = (
        pack_labels(OFDataset(chosen, basis_info), tmp_path / name, progress=False)
        for name, chosen in (("a", raw.paths[:1]), ("b", raw.paths[1:]))
    )
    both = PackedDataset([a, b])
    order = [5, 0, 11, 7, 1]
    assert_same_fields(both.__getitems__(order), make_batch([raw[i] for i in order]))
    assert both.paths == [a / raw.paths[0].name, b / raw.paths[1].name, b / raw.paths[2].name]
    some = PackedDataset([a, b], [np.array([], dtype=np.int64), np.array([1, 0])])
    assert some.elements() == {1, 6, 8}
    assert_same_fields(some.__getitems__(range(8)), make_batch([raw[i] for i in (7, 8, 9, 10, 11, 4, 5, 6)]))


def test_sets_that_were_packed_differently_are_not_mixed(
    packed: Path, raw: OFDataset, basis_info: Any, tmp_path: Path
) -> None:
    exponents = [[1.0] * len(set(own)) for own in basis_info.split_field_by_atom_type(basis_info.basis_func_to_shell)]
    another = BasisInfo(basis_info.atomic_numbers, basis_info.irreps_per_atom, exponents)
    for dataset, dtype, error, what in (
        (raw, "float32", ConfigError, "dtype"),
        (OFDataset(raw.paths, another), "float64", BasisError, "basis_info"),
    ):
        folder = pack_labels(dataset, tmp_path / what, dtype=dtype, progress=False)
        with pytest.raises(error, match=rf"packed with different {what}.*data\.source\.paths"):
            PackedDataset([packed, folder])
    with pytest.raises(ConfigError, match="no packed set"):
        PackedDataset([])


def test_a_target_that_was_not_packed_is_refused_by_name(packed: Path) -> None:
    with pytest.raises(LabelFileError, match=r"lacks 'e_xc', has \['e_kin', 'e_tot'\].*data\.source\.energy_key"):
        PackedDataset([packed], energy_key="e_xc")
    with pytest.raises(LabelFileError, match=r"lacks 'grad_xc'.*data\.source\.gradient_key"):
        PackedDataset([packed], gradient_key="grad_xc")
    with pytest.raises(LabelFileError, match="lacks 'e_xc'"):
        PackedDataset([packed]).with_target("xc")
    assert PackedDataset([packed]).with_target("tot").energy_key == "e_tot"


def test_the_state_tells_sets_and_selections_apart(packed: Path) -> None:
    others: Any = ({"molecules": [np.array([1, 0])]}, {"limit_scf_iterations": -1}, {"energy_key": "e_tot"})
    states = [PackedDataset([packed], **chosen).state() for chosen in ({}, *others)]
    assert PackedDataset([packed], transform=ProjectGradient()).state() == states[0]
    os.utime(packed / "coeffs.npy", (1, 1))
    states.append(PackedDataset([packed]).state())
    assert len({json.dumps(state) for state in states}) == len(states)


def test_float32_sets_keep_energies_in_float64(raw: OFDataset, tmp_path: Path) -> None:
    found = PackedDataset([pack_labels(raw, tmp_path / "single", dtype="float32", progress=False)])
    a, b = found.molecules([0, 1, 2]), raw.molecules([0, 1, 2])
    for field in ("coeffs", "ground_state_coeffs", "gradient_label"):
        assert a[field].dtype == torch.float32
        assert torch.equal(a[field], b[field].float())
    for field in ("pos", "energy_label", "dual_basis_integrals"):
        assert torch.equal(a[field], b[field])


# --- transforms that were applied -------------------------------------------------------------------------------------

LOCAL = BasisTransforms([LocalFrames(), NaturalReparametrization()])
NATURAL = BasisTransforms([NaturalReparametrization()])
PROJECT = ProjectGradient()
TWO, THREE = Doubled(2.0), Doubled(3.0)


@pytest.mark.parametrize(
    ("wanted", "applied", "left"),
    [
        ([LOCAL, PROJECT], [], [PROJECT]),
        ([NATURAL, PROJECT], [], [NATURAL, PROJECT]),
        ([LOCAL, PROJECT, TWO], [PROJECT], [TWO]),
        ([LOCAL], [PROJECT], None),
        ([THREE], [TWO], None),
        ([TWO, PROJECT], [PROJECT], None),
    ],
)
def test_transforms_that_were_applied_are_left_out_and_others_refused(wanted: Any, applied: Any, left: Any) -> None:
    identities = [identify(transform) for transform in applied]
    refusal = pytest.raises(ConfigError, match=r"packed: was packed .*data\.pre_transforms")
    with refusal if left is None else nullcontext():
        assert find_remaining_transforms(wanted, identities, "packed", LOCAL.coordinates) == left


class Halved:
    """A transform for single samples; the initial guess and the others alike."""

    def __call__(self, sample: OFData) -> OFData:
        sample.coeffs = sample.coeffs / 2
        sample.ground_state_coeffs = sample.ground_state_coeffs / 2
        return sample


class ToOtherCoordinates:
    """A change of basis; only water's is another."""

    changes_basis = True

    def __call__(self, sample: OFData) -> OFData:
        sample.coordinates = f"of_{sample.mol_id}"
        return sample


def test_pre_transforms_are_applied_before_packing(raw: OFDataset, tmp_path: Path, assert_same_fields: Any) -> None:
    transforms = (Halved(), ProjectGradient())
    packed = pack_labels(raw, tmp_path / "new" / "packed", ["kin"], transforms, workers=2, progress=False)
    assert packed == tmp_path / "new" / "packed"
    assert os.listdir(packed.parent) == ["packed"]
    assert PackedSet(packed).meta["applied"] == [identify(t) for t in transforms]
    for found, expected in zip(PackedDataset([packed]), raw, strict=True):
        for transform in transforms:
            expected = transform(expected)
        assert_same_fields(found, expected)
    assert verify_packed(raw, packed, ["kin"], transforms, every=1) == 3


def test_further_energies_and_perturbed_rows_are_packed(labels: Any, basis_info: Any, tmp_path: Path) -> None:
    def add(arrays: dict[str, np.ndarray]) -> None:
        arrays["of_labels/energies/e_xc"] = np.array([0.0, -3.0, -2.0, -1.0])
        arrays["of_labels/perturbed"] = np.array([False, True, False, False])

    raw = OFDataset([labels.write(change=add)], basis_info)
    packed = pack_labels(raw, tmp_path / "packed", ["kin", "tot"], energies=["xc"], progress=False)
    again = pack_labels(PackedDataset([packed]), tmp_path / "again", energies=["xc"], progress=False)
    for folder in (packed, again):
        found = PackedDataset([folder], energy_key="e_xc")
        assert [float(sample.energy_label) for sample in found] == [0.0, -3.0, -2.0, -1.0]
        assert [bool(sample.perturbed) for sample in found] == [False, True, False, False]
        assert torch.equal(found[1].gradient_label, raw[1].gradient_label)
        assert torch.equal(found[1].ground_state_coeffs, raw[3].coeffs)
    assert verify_packed(raw, packed, ["kin", "tot"]) == 1


def test_an_output_that_exists_is_left_alone(raw: OFDataset, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for output in (tmp_path, tmp_path / "link"):
        with pytest.raises(ConfigError, match="exists already"):
            pack_labels(raw, output, progress=False)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("kind", "workers", "message"),
    [
        *(("broken", workers, r"^\S*broken\.zarr\.zip: ") for workers in (0, 1)),
        ("integrals", 0, "molecule 'ice': field 'dual_basis_integrals' differs between SCF"),
        ("disk", 0, "packed: cannot be written: .*No space"),
    ],
)
def test_packing_that_fails_leaves_nothing(
    kind: str, workers: int, message: str, raw: OFDataset, labels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(arrays: dict[str, np.ndarray]) -> None:
        arrays["of_labels/spatial/dual_basis_integrals"][2] *= 2

    paths = list(raw.paths)
    if kind == "disk":
        monkeypatch.setattr(pack, "compute_meta_checksum", Mock(side_effect=OSError(28, "No space left on device")))
    elif kind == "integrals":
        paths.append(labels.write("ice.zarr.zip", change=spoil))
    else:
        paths.append(tmp_path / "broken.zarr.zip")
        paths[-1].write_bytes(b"not a label file")
    with pytest.raises(LabelFileError, match=message):
        pack_labels(OFDataset(paths, labels.basis_info), tmp_path / "packed", workers=workers, progress=False)
    assert not list(tmp_path.glob("*packed*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16'"),
        ({"targets": []}, "targets"),
        ({"targets": ["xc"]}, "e_xc"),
        ({"energies": ["kin"]}, "targets"),
        ({"pre_transforms": [Doubled()]}, r"\['twice'\].*data\.pre_transforms"),
        ({"pre_transforms": [lambda sample: sample]}, "cannot be recognised"),
        ({"pre_transforms": [ToOtherCoordinates()]}, "one system of coordinates"),
        ({"dataset": {"limit_scf_iterations": -1}}, "all SCF iterations"),
        ({"dataset": {"paths": ["a/1.zarr", "b/1.zarr"]}}, "2 label files, 1 names"),
    ],
)
def test_settings_that_cannot_be_packed_are_refused(
    settings: dict[str, Any], message: str, raw: OFDataset, basis_info: Any, tmp_path: Path
) -> None:
    dataset = OFDataset(**{"paths": raw.paths, "basis_info": basis_info} | settings.pop("dataset", {}))
    with pytest.raises((ConfigError, LabelFileError), match=message):
        pack_labels(dataset, tmp_path / "packed", progress=False, **settings)
    assert not list(tmp_path.glob("*packed*"))


def test_verification_finds_differences(raw: OFDataset, basis_info: Any, tmp_path: Path, labels: Any) -> None:
    packed = pack_labels(raw, tmp_path / "packed", progress=False)
    others = OFDataset(raw.paths[::-1], basis_info)
    for other, options, words in (
        (raw, {"targets": ["tot"]}, r"other \['targets'\]"),
        (raw, {"pre_transforms": [ProjectGradient()]}, r"other \['applied'\]"),
        (others, {}, "other label files"),
        (raw, {"every": 0}, "verify is 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            verify_packed(other, packed, **options)
    labels.write("water.zarr.zip")
    with pytest.raises(LabelFileError, match=r"water\.zarr\.zip: target 'kin': field '.*' is not the packed one"):
        verify_packed(OFDataset(raw.paths, basis_info), packed)
