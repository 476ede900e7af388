"""Summaries of statistics and normalisers where they differ from the guide's, and the molecules that set lambda."""

import re

import numpy as np
import pytest

from ofdft_norm import DatasetStatistics, DimensionWiseRescaling, Normalizer
from ofdft_norm.config import AtomRefConfig, LinearReferencesConfig, RescalingConfig
from ofdft_norm.normalization.build_normalizer import NormalizerSettings, build_normalizer
from ofdft_norm.normalization.reference_files import references_from_values
from ofdft_norm.normalization.summary import describe_normalizer, find_lambda_holders, summarize, tabulate_lambda

KEY = "has_energy_label"
S_GRAD = 0.4


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(name))
    return re.split(r"\s{2,}", line.strip())[1:]


def test_references_of_other_origins_have_a_row_of_their_own(samples, statistics, basis_info):
    config = LinearReferencesConfig(values={"H": -1.0, "C": -30.0, "O": -50.0})
    normalizer = build_normalizer(statistics, basis_info, NormalizerSettings(config))
    left = [float(s.energy_label - normalizer.reference.energy(s)) for s in samples if s.has_energy_label]
    text = summarize(statistics, basis_info, normalizer)
    assert cells(text, "given ")[:3] == [f"{np.std(left):.5f}", "-", "-"]
    assert "used" in cells(text, "given ")
    assert "given values, not fitted" in text
    assert "reference given, rescaling none" in describe_normalizer(normalizer, statistics, KEY)
    default = build_normalizer(statistics, basis_info, NormalizerSettings(AtomRefConfig(), RescalingConfig()))
    expected = r"reference atomic \(rank 4, R2 0\.\d{6}\), rescaling dimension-wise, energy scale 1 hartree$"
    assert re.search(expected, describe_normalizer(default, statistics, KEY))
    assert "rescaling equivariant" in describe_normalizer(default, statistics, KEY, equivariant=True)


# --- which molecules set lambda -----


@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize("s_coeff", [50.0, 12.0])
def test_the_molecules_that_set_lambda(samples, statistics, basis_info, equivariant, s_coeff):
    rescaling = DimensionWiseRescaling.from_dataset_statistics(
        statistics, basis_info, equivariant=equivariant, s_grad=S_GRAD, s_coeff=s_coeff
    )
    weigher, shell = statistics[KEY], basis_info.basis_func_to_shell
    holders = find_lambda_holders(weigher, rescaling, basis_info)
    origin = np.where(equivariant & (basis_info.l_per_basis_func > 0), 0.0, weigher.gradient_label.mean)
    distances = np.zeros((len(samples), basis_info.n_basis))
    for own, sample in zip(distances, samples, strict=True):
        index = sample.basis_function_ind.numpy()
        if sample.has_energy_label:
            np.maximum.at(own, index, np.abs(sample.gradient_label.numpy() - origin[index]))
    for b in range(basis_info.n_basis):
        largest = distances[:, shell == shell[b] if equivariant else [b]].max(1)
        by_gradient = S_GRAD < largest.max() <= S_GRAD * s_coeff / float(rescaling.coeff_stds[b])
        assert (b in holders) == by_gradient
        if by_gradient:
            assert holders[b] == samples[largest.argmax()].mol_id


def test_other_statistics_do_not_name_them(statistics, basis_info):
    rescaling = DimensionWiseRescaling.from_dataset_statistics(statistics, basis_info, s_grad=S_GRAD)
    foreign = DatasetStatistics.from_arrays(statistics.to_arrays(), {**statistics.attributes, "gradient_holders": {}})
    assert tabulate_lambda(foreign[KEY], rescaling, basis_info) == ""
    doubled = DimensionWiseRescaling(rescaling.coeff_biases, rescaling.coeff_stds, 2 * rescaling.max_grads)
    assert not find_lambda_holders(statistics[KEY], doubled, basis_info)
    nothing = DimensionWiseRescaling.from_dataset_statistics(statistics, basis_info, s_grad=1e3)
    assert tabulate_lambda(statistics[KEY], nothing, basis_info) == ""
    given = Normalizer(references_from_values({"H": -1.0, "C": -30.0, "O": -50.0}), doubled)
    assert "lambda" in summarize(foreign, basis_info, given)
