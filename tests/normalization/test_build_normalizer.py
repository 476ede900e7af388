"""A normaliser from statistics and settings: its parts, its energy scale, corrected references."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from ofdft_norm import (
    AtomRef,
    BasisInfo,
    ConstantSampleWeigher,
    DatasetStatistics,
    DimensionWiseRescaling,
    Normalizer,
    create_element_references,
)
from ofdft_norm.config import AtomRefConfig, LinearReferencesConfig, RescalingConfig, WrappedData
from ofdft_norm.errors import ConfigError, NormalizationError, StatisticsError
from ofdft_norm.normalization.build_normalizer import (
    NormalizerSettings,
    build_normalizer,
    find_residual,
)
from ofdft_norm.normalization.state import dump_normalizer

KEY = "has_energy_label"
ENERGY = WrappedData(train=[], energy_field="energy")


def test_the_parts_are_those_of_the_settings(statistics, basis_info):
    settings = NormalizerSettings(AtomRefConfig(True), RescalingConfig(equivariant=True, s_grad=0.2), 0.5, unit="eV")
    source = WrappedData(train=[], energy_field="y", forces_field="forces", atomic_numbers_field="species")
    normalizer = build_normalizer(statistics, basis_info, settings, source)
    reference = AtomRef.from_dataset_statistics(statistics, basis_info, scalar_only=True)
    assert torch.equal(normalizer.reference.g_z, reference.g_z)
    s_grad = 0.2 * 27.211386  # hartree in eV
    rescaling = DimensionWiseRescaling.from_dataset_statistics(
        statistics, basis_info, equivariant=True, s_grad=normalizer.rescaling.s_grad
    )
    assert normalizer.rescaling.s_grad == pytest.approx(s_grad, rel=1e-6)
    assert torch.equal(normalizer.rescaling.lambda_z, rescaling.lambda_z)
    assert (float(normalizer.energy_scale), normalizer.unit, normalizer.coordinates) == (0.5, "eV", "raw")
    assert (normalizer.energy_field, normalizer.forces_field, normalizer.basis_info) == ("y", "forces", basis_info)
    assert normalizer.seen_elements.nonzero().squeeze(1).tolist() == [1, 6, 8]
    assert normalizer.training_range is not None
    assert settings.describe_difference(normalizer) == ""
    bare = build_normalizer(statistics, basis_info, NormalizerSettings(unseen_elements="identity"))
    assert (bare.reference, bare.rescaling, bare.seen_elements) == (None, None, None)
    parts = ["reference: AtomRef against NoneType", "rescaling: DimensionWiseRescaling against NoneType"]
    expected = ["energy_scale: 0.5 against 1.0", *parts, "unit: eV against hartree"]
    assert settings.describe_difference(bare).split("; ") == expected
    linear = build_normalizer(statistics, basis_info, NormalizerSettings(LinearReferencesConfig()), source)
    assert linear.reference.atomic_numbers_field == "species"


def test_statistics_and_samples_must_fit(statistics):
    other = BasisInfo([1, 6, 8], ["3x0e+1x1o", "3x0e+2x1o+1x2e", "2x0e+1x1o+1x2e"])
    with pytest.raises(StatisticsError, match=r"data\.statistics\.path, data\.source\.basis_info"):
        build_normalizer(statistics, other, NormalizerSettings())
    for settings in (NormalizerSettings(AtomRefConfig()), NormalizerSettings(None, RescalingConfig())):
        with pytest.raises(ConfigError, match=r"need density coefficients.*data/reference=linear"):
            settings.check(None)


@pytest.mark.parametrize(("unit", "factor"), [("hartree", 27.211386), ("eV", 1.0), (None, 1.0)])
def test_given_references_are_converted_from_their_own_unit(unit, factor, statistics, basis_info):
    reference = LinearReferencesConfig(values={"H": -0.4, "C": -37.0, "O": -75.0}, unit=unit)
    normalizer = build_normalizer(statistics, basis_info, NormalizerSettings(reference, unit="eV"))
    assert float(normalizer.reference.element_references[6]) == pytest.approx(-37.0 * factor, rel=1e-6)


def test_without_counts_unseen_elements_have_zeros_throughout(basis_info):
    largest = np.ones(basis_info.n_basis)
    largest[basis_info.atom_ind_to_basis_function_ind[1]] = 0
    arrays = {f"{KEY}/coeffs/abs_max": largest, f"{KEY}/coeffs/mean": largest}
    normalizer = build_normalizer(DatasetStatistics.from_arrays(arrays), basis_info, NormalizerSettings())
    assert normalizer.seen_elements.nonzero().squeeze(1).tolist() == [1, 8]


# --- energy scale -----


REFERENCES = {
    "none": None,
    "atomic": AtomRefConfig(),
    "scalar": AtomRefConfig(scalar_only=True),
    "linear": LinearReferencesConfig(),
    "by_sample": LinearReferencesConfig(count_by="sample"),
    "given": LinearReferencesConfig(values={"H": -0.4, "C": -37.0, "O": -75.0}),
    "ridge": LinearReferencesConfig(ridge=0.1),
}


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("per_atom", [False, True])
@pytest.mark.parametrize("word", ["std", "rmsd", "mae"])
def test_words_are_statistics_of_the_referenced_energies(word, per_atom, reference, statistics, samples, basis_info):
    settings = NormalizerSettings(REFERENCES[reference], None, word, per_atom)
    if word == "mae" and reference in ("given", "ridge"):
        with pytest.raises(StatisticsError, match=r"choose std or rmsd .*data\.energy_scale"):
            build_normalizer(statistics, basis_info, settings)
        return
    normalizer = build_normalizer(statistics, basis_info, settings)
    labelled = [sample for sample in samples if sample.has_energy_label]
    left = np.array([float(s.energy_label) for s in labelled])
    if reference == "none":
        left = left - left.mean()
    else:
        left = left - [float(normalizer.reference.energy(s)) for s in labelled]
    expected = {"std": left.std(), "rmsd": np.sqrt((left**2).mean()), "mae": np.abs(left).mean()}[word]
    atoms = np.mean([len(s.pos) for s in labelled]) if per_atom else 1.0
    assert float(normalizer.energy_scale) == pytest.approx(expected / atoms, rel=1e-9)
    assert find_residual(statistics, KEY, normalizer.reference, basis_info)[0] in (
        *("none", "atom_ref", "scalar_atom_ref", "linear_ref", "linear_ref_by_sample"),
        *("given", "linear, changed"),
    )


@pytest.mark.parametrize("spec", [0, -1.0, math.nan, math.inf, True, None, "1.0", "STD"])
def test_other_energy_scales_are_refused(spec):
    with pytest.raises(ConfigError, match=r"energy_scale = .*expected a positive number .*config: data\.energy_scale"):
        build_normalizer(DatasetStatistics.from_arrays({}), None, NormalizerSettings(energy_scale=spec))


def test_misspelt_words_are_corrected_and_missing_statistics_named():
    statistics = DatasetStatistics.from_arrays(
        {f"{KEY}/energy/mean": np.array(-1.0), f"{KEY}/energy/std": np.array(3e-14)}
    )
    for spec, error, message in (
        ("sdt", ConfigError, "did you mean 'std'"),
        ("mae", StatisticsError, r"data\.statistics\.residuals=true"),
        ("std", StatisticsError, r"is 3e-14: .*data\.energy_scale=1\.0"),
    ):
        with pytest.raises(error, match=message):
            build_normalizer(statistics, None, NormalizerSettings(energy_scale=spec))


def test_given_references_must_cover_the_training_split(statistics, basis_info):
    settings = NormalizerSettings(LinearReferencesConfig(values={"H": -0.4}), None, "std")
    with pytest.raises(NormalizationError, match=r"the training split: .*\[6, 8\]"):
        build_normalizer(statistics, basis_info, settings)


# --- corrected references -----

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


def build(data: list[Data], reference: LinearReferencesConfig, **options: Any) -> Normalizer:
    weighers = [ConstantSampleWeigher()]
    statistics = DatasetStatistics.from_dataset(None, data, None, weighers, energy_field="energy", progress=False)
    settings = NormalizerSettings(reference, energy_scale=options.pop("energy_scale", 1.0))
    return build_normalizer(statistics, None, settings, ENERGY, "constant", **options)


@pytest.fixture
def base(tmp_path) -> Path:
    values = torch.tensor([BASE.get(z, 0.0) for z in range(10)], dtype=torch.float64)
    torch.save({"element_references": values}, tmp_path / "b.pt")
    return tmp_path / "b.pt"


@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("count_by", ["molecule", "sample"])
@pytest.mark.parametrize("is_deficient", [False, True])
def test_the_smallest_correction_is_added(base, is_deficient, count_by, ridge):
    # C and H in one proportion, no O; or all elements in several
    deficient = [[6, 1, 1, 1, 1], [6, 6, *[1] * 8], [6] * 3 + [1] * 12]
    data = molecules(deficient if is_deficient else [[1], [6, 1], [1, 1, 8], [8, 8], [6, 6, 1], [6, 8]])
    references = build(data, LinearReferencesConfig(base=str(base), count_by=count_by, ridge=ridge)).reference
    delta = numpy_correction(data, ridge)
    for z, value in BASE.items():
        assert float(references.element_references[z]) == pytest.approx(value + delta.get(z, 0.0), abs=1e-9)
    assert references.seen_elements.nonzero().squeeze(1).tolist() == sorted(BASE)
    assert references.fit_report.moved == pytest.approx(list(delta.values()), abs=1e-9)
    assert f"correction of the base [Ha]: H {delta[1]:+.3g}" in references.summary("hartree")


def test_a_checkpoint_is_a_base(tmp_path, base):
    first = build(molecules([[1], [6, 1], [7, 7], [1, 1, 8], [8, 8]], 0.0), LinearReferencesConfig(base=str(base)))
    torch.save({"state_dict": {}, "OFDFTDataModule": {"normalizer": dump_normalizer(first)}}, tmp_path / "old.ckpt")
    opened = create_element_references(tmp_path / "old.ckpt")
    assert torch.equal(opened.element_references, first.reference.element_references)
    config = LinearReferencesConfig(base=str(tmp_path / "old.ckpt"))
    moved = build(molecules([[1], [8, 8], [8, 1]]), config).reference
    assert torch.equal(moved.element_references[[6, 7]], opened.element_references[[6, 7]])
    with pytest.raises(StatisticsError, match=r"max_num_elements = 7"):
        build(molecules([[1], [6]]), LinearReferencesConfig(base=str(base), max_num_elements=7))
    empty = {"state_dict": {}, "OFDFTDataModule": {"normalizer": dump_normalizer(Normalizer())}}
    torch.save(empty, tmp_path / "none.ckpt")
    with pytest.raises(StatisticsError, match=r"none\.ckpt: has no references"):
        build(molecules([[1], [8]]), LinearReferencesConfig(base=str(tmp_path / "none.ckpt")))


def test_references_by_data_set_come_from_the_configuration():
    data = molecules([[1], [8], [1, 8], [1, 1, 8]] * 2)
    for i, sample in enumerate(data):
        sample.level = "ab"[i // 4]
    config = LinearReferencesConfig(by="level", count_by="sample")
    normalizer = build(data, config, energy_scale="mae", open_dataset=lambda: data)
    left = [float(m.energy) - float(normalizer.reference.energy(m)) for m in data]
    assert normalizer.reference.names == ["a", "b"]
    assert float(normalizer.energy_scale) == pytest.approx(np.abs(left).mean(), rel=1e-9)
