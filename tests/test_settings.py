"""Settings are checked against their annotations in the constructor; one message names all errors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ofdft_norm import OFDFTDataModule
from ofdft_norm.config import (
    LabelFiles,
    LinearReferencesConfig,
    LoaderConfig,
    RescalingConfig,
    SplitConfig,
    StatisticsConfig,
)
from ofdft_norm.errors import ConfigError
from ofdft_norm.example.train import RunConfig
from ofdft_norm.labelling import KohnShamSettings, LabelSettings
from ofdft_norm.settings import AtomicNumber, Positive, PositiveInt, Share, check_arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RescalingConfig(s_grad=0),
            "data.rescaling.s_grad = 0: should be a positive number, 1e-100 ... 1e+100",
        ),
        (lambda: LinearReferencesConfig(values={"H": float("nan")}), "entry 'H' should be a finite number"),
        (lambda: LinearReferencesConfig(max_num_elements=119), "should be less than or equal to 118"),
        (lambda: RescalingConfig(s_gard=1), "data.rescaling.s_gard = 1: no such setting; did you mean 's_grad'?"),
        (lambda: LoaderConfig(batch_size=2.0), "data.loader.batch_size = 2.0: should be a valid integer"),
        (lambda: StatisticsConfig(fingerprint="size"), "fingerprint = 'size': should be 'mtime' or 'contents'"),
        (lambda: StatisticsConfig(weighers=["x"]), "weighers = ['x']: entry 0 should be an instance of SampleWeigher"),
        (lambda: StatisticsConfig(weigher_key="x"), "statistics.weigher_key = 'x' is not among the fitted weighers"),
        (lambda: LabelFiles("a"), "data.source.basis_info: Field required"),
        (lambda: OFDFTDataModule(dtype="nothing"), "data.dtype = 'nothing': should be '"),
        (lambda: OFDFTDataModule(pre_transforms=[3]), "data.pre_transforms = [3]: entry 0 should be callable"),
        (lambda: RunConfig(seed=-1), "seed = -1: should be greater than or equal to 0"),
        (lambda: LabelSettings(density_fit="free"), "labels.density_fit = 'free'"),
        (lambda: LabelSettings(targets=["grad_kinetic"]), "grad_kinetic"),
        (lambda: KohnShamSettings(min_labelled=9, max_iterations=3), "labels.min_labelled = 9 and labels.max_it"),
    ],
)
def test_messages_name_key_value_and_expectation(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)


def test_one_message_has_everything_that_is_wrong() -> None:
    for make, names in [
        (lambda: RescalingConfig(s_grad=0, s_coeff="abc", s_gard=1), ["s_coeff", "s_grad", "s_gard"]),
        (lambda: OFDFTDataModule(loader=3, energy_scale_per_atom=1), ["loader", "energy_scale_per_atom"]),
    ]:
        with pytest.raises(ConfigError) as caught:
            make()
        found = [line.partition(" = ")[0].rpartition(".")[2] for line in str(caught.value).splitlines()]
        assert sorted(found) == sorted(names)


def test_what_python_and_hydra_callers_give_is_accepted() -> None:
    rescaling = RescalingConfig(s_grad=np.float32(0.5), s_coeff=np.int64(3))
    assert (rescaling.s_grad, rescaling.s_coeff) == (0.5, 3.0)
    files = LabelFiles([Path("labels")], Path("basis.json"), limit_scf_iterations=OmegaConf.create([1, 2]))
    assert (files.paths, files.basis_info, files.limit_scf_iterations) == (["labels"], "basis.json", [1, 2])
    assert LinearReferencesConfig(values=OmegaConf.create({"H": -0.5, 6: -37})).values == {"H": -0.5, 6: -37}
    assert SplitConfig(train=1, val=0, test=0).train == 1


@given(st.floats(allow_nan=True) | st.integers(-3, 3) | st.booleans() | st.text(max_size=3) | st.none())
def test_ranges_hold_exactly_for_the_numbers_within(value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    expected = {
        Positive: number and value > 0,
        Share: number and 0 <= value <= 1,
        AtomicNumber: number and isinstance(value, int) and 1 <= value <= 118,
    }
    assert {hint: accepts(value, hint) for hint in expected} == expected


def accepts(value: Any, hint: Any) -> bool:
    def function(argument: Any) -> None: ...

    function.__annotations__["argument"] = hint
    try:
        check_arguments(function, {"argument": value, "unrelated": object()}, "part")
    except ConfigError:
        return False
    return True


def test_subclasses_check_their_own_fields_under_their_own_key() -> None:
    class Child(RescalingConfig):
        sizes: Sequence[PositiveInt] = (1,)
        config_key = "data.child"

    with pytest.raises(ConfigError, match=r"data\.child\.sizes = \(1, 0\): entry 1 should be"):
        Child(sizes=(1, 0))
    with pytest.raises(ConfigError, match=r"data\.child\.s_grad"):
        Child(s_grad=-1)
