"""Settings, splits, bases and reference files that are not what they should be: each is refused in words.

Every case is one line of a table: what is written or given, and words that the message must hold; the message also
names the file, where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import (
    BasisInfo,
    ConstantSampleWeigher,
    DimensionWiseRescaling,
    create_element_references,
)
from ofdft_norm.config import LinearReferencesConfig, RescalingConfig
from ofdft_norm.data.split import read_split
from ofdft_norm.errors import BasisError, ConfigError, SplitError, StatisticsError

# --- files that are no YAML or JSON -----------------------------------------------------------------------------------

PLAIN = [
    (".yaml", f"train: {'[' * 5000}{']' * 5000}", "cannot be read"),
    (".yaml", "train: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    (".yaml", "? [a]\n: 1", "cannot be read"),
    (".yaml", "train: [", "cannot be read"),
    (".yaml", "train: \x01", "special characters"),
    (".json", "[" * 100_000 + "]" * 100_000, "cannot be read"),
    (".json", '{"train": NaN}', "nan"),
    (".json", '{"train": ', "Expecting value"),
    (".json", "", "Expecting value"),
    (".json", "\udcff", "cannot be read"),
]


@pytest.mark.parametrize(("suffix", "text", "words"), PLAIN)
def test_files_that_cannot_be_read(tmp_path: Path, suffix: str, text: str, words: str) -> None:
    path = tmp_path / f"split{suffix}"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(SplitError) as refused:
        read_split(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)
    read_basis = BasisInfo.from_json if suffix == ".json" else lambda path: BasisInfo.from_dataset_info_yaml(path, [1])
    with pytest.raises(BasisError) as basis:
        read_basis(path)
    assert str(path) in str(basis.value)


# --- splits: entries --------------------------------------------------------------------------------------------------

ENTRY = "expected the name of a label file"
SPLITS: list[tuple[Any, str]] = [
    ({"train": [["QM9", "a.zarr", 1e30]]}, ENTRY),
    ({"train": [["QM9", "a.zarr", 10**30]]}, ENTRY),
    ({"train": [["QM9", "a.zarr", 0]]}, ENTRY),
    ({"train": [["QM9", "a.zarr", -3]]}, ENTRY),
    ({"train": [["QM9", "a.zarr", 2.5]]}, ENTRY),
    ({"train": [["QM9", "a.zarr", None]]}, ENTRY),
    ({"train": [["QM9", ["a"], 3]]}, ENTRY),
    ({"train": [["QM9", "a"]]}, ENTRY),
    ({"train": [{"a": 1}]}, ENTRY),
    ({"train": [3]}, ENTRY),
    ({"train": [None]}, ENTRY),
    ({"train": "a"}, "train is a str, expected a list"),
    ({"train": {"a": 1}}, "train is a dict, expected a list"),
    ({"train": None}, "train is a NoneType, expected a list"),
    ({"training": ["a"]}, "with the keys ['train', 'val', 'test'], found ['training']"),
    ({"val": ["a"]}, "with the keys"),
    ({}, "with the keys"),
    ([["a"]], "expected a mapping"),
    (3, "expected a mapping"),
    (None, "expected a mapping"),
]


@pytest.mark.parametrize(("content", "words"), SPLITS)
def test_splits(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SplitError) as caught:
        read_split(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


# --- the basis --------------------------------------------------------------------------------------------------------

BASES: list[tuple[Any, Any, str]] = [
    ([1], ["6x0o"], "expected the parity (-1)^l"),
    ([1], ["6x0e+2x1e"], "expected the parity (-1)^l"),
    ([1], ["6x0e+2x2o"], "expected the parity (-1)^l"),
    ([1], ["99999999x0e"], "expected terms such as"),
    ([1], ["1001x0e"], "expected terms such as"),
    ([1], ["1x13o"], "with l up to 12"),
    ([1], ["1x999999999o"], "with l up to 12"),
    ([1], ["1x9999999999999o"], "expected terms such as"),
    ([1], [""], "expected terms such as"),
    ([1], ["0x0e"], "has no function"),
    ([1], ["-1x0e"], "expected terms such as"),
    ([1], ["1x0e+"], "expected terms such as"),
    ([1], ["2x1o+1x0e"], "not sorted by angular momentum"),
    ([1], [None], "expected terms such as"),
    ([1], [6], "expected terms such as"),
    ([], [], "0 atomic_numbers and 0 irreps_per_atom"),
    ([1, 1], ["1x0e", "1x0e"], "expected different numbers"),
    ([0], ["1x0e"], "expected different numbers, 1 ... 118"),
    ([119], ["1x0e"], "expected different numbers, 1 ... 118"),
    ([-1], ["1x0e"], "expected different numbers, 1 ... 118"),
    ([1.5], ["1x0e"], "whole numbers"),
    ([1e30], ["1x0e"], "whole numbers"),
    ([True], ["1x0e"], "whole numbers"),
    (["H"], ["1x0e"], "whole numbers"),
    ([[1]], ["1x0e"], "whole numbers"),
    (1, ["1x0e"], "vector of whole numbers"),
    (None, ["1x0e"], "whole numbers"),
    ([1, 6], ["1x0e"], "2 atomic_numbers and 1 irreps_per_atom"),
    ([1], None, "NoneType"),
]


@pytest.mark.parametrize(("elements", "irreps", "words"), BASES)
def test_bases(tmp_path: Path, elements: Any, irreps: Any, words: str) -> None:
    path = tmp_path / "basis_info.json"
    path.write_text(json.dumps({"atomic_numbers": elements, "irreps_per_atom": irreps}))
    with pytest.raises(BasisError) as caught:
        BasisInfo.from_json(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "(config: data.source.basis_info)" in str(caught.value)


# --- references -------------------------------------------------------------------------------------------------------

ONE = np.zeros(119)
ONE[1] = -0.5
REFERENCES: list[tuple[Any, str]] = [
    (ONE + 1j, "complex"),
    (np.stack([ONE, ONE]), "shape (2, 119)"),
    (ONE[None, None].repeat(2, 0), "shape (2, 1, 119)"),
    (np.array(["a"] * 119), "has no numbers"),
    (ONE.astype("M8[s]"), "has no numbers"),
    (np.zeros(119, dtype=[("a", "f8")]), "has no numbers"),
    (np.where(ONE != 0, np.nan, 0), "expected a vector of finite numbers"),
    (np.where(ONE != 0, -np.inf, 0), "expected a vector of finite numbers"),
    (ONE[:1], "shape (1,)"),
    (ONE[:0], "shape (0,)"),
    (np.array(1.0), "shape ()"),
    (np.array([None] * 119, dtype=object), "cannot be read"),
]


@pytest.mark.parametrize(("array", "words"), REFERENCES)
def test_reference_files(tmp_path: Path, array: Any, words: str) -> None:
    path = tmp_path / "references.npz"
    np.savez(path, element_references=array)
    with pytest.raises(StatisticsError) as caught:
        create_element_references(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"element_references": "abc"}, "has no numbers"),
        ({"element_references": None}, "has no numbers"),
        ({"element_references": torch.zeros(119, dtype=torch.complex64)}, "complex"),
        ({"element_references": torch.zeros(119, device="meta")}, "has no numbers"),
        ({"element_references": torch.from_numpy(ONE), "seen_elements": "xx"}, "'seen_elements' has no numbers"),
    ],
)
def test_reference_states(tmp_path: Path, state: Any, words: str) -> None:
    path = tmp_path / "references.pt"
    torch.save(state, path)
    with pytest.raises(StatisticsError) as caught:
        create_element_references(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_columns_rows_and_other_precisions_are_references(tmp_path: Path) -> None:
    for array in (ONE[:, None], ONE[None], ONE.astype(np.float32), ONE.astype(np.float16), (2 * ONE).astype(int) / 2):
        np.savez(tmp_path / "references.npz", element_references=array)
        assert create_element_references(tmp_path / "references.npz").element_references[1] == -0.5


# --- numbers that overflow or vanish, and keys that collide -----------------------------------------------------------

SETTINGS: list[tuple[Callable[[], Any], str]] = [
    (lambda: RescalingConfig(s_grad=1e-320), "s_grad = 1e-320: should be a positive number, 1e-100 ... 1e+100"),
    (lambda: RescalingConfig(s_grad=1e200), "s_grad = 1e+200: should be a positive number, 1e-100 ... 1e+100"),
    (lambda: RescalingConfig(s_coeff=1e-200), "s_coeff = 1e-200: should be a positive number, 1e-100 ... 1e+100"),
    (lambda: RescalingConfig(epsilon=float("inf")), "epsilon = inf: should be a finite number"),
    (lambda: LinearReferencesConfig(values={"H": float("nan")}), "entry 'H' should be a finite number"),
    (lambda: LinearReferencesConfig(ridge=-1e-300), "ridge = -1e-300: should be greater than or equal to 0"),
    (lambda: LinearReferencesConfig(max_num_elements=119), "should be less than or equal to 118"),
]


@pytest.mark.parametrize(("make", "words"), SETTINGS)
def test_settings(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert words in str(caught.value)
    assert "data." in str(caught.value)


@pytest.mark.parametrize("name", ["s_coeff", "s_grad"])
@pytest.mark.parametrize("value", [-1.0, 1e-320, 1e200, float("nan")])
def test_scales_that_make_lambda_infinite_or_zero(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"data\.rescaling\.{name} = .*: should be a (positive|finite) number"):
        DimensionWiseRescaling(np.zeros(2), np.ones(2), np.ones(2), **{name: value})


@pytest.mark.parametrize("weight", [-1, 1e200, 1e-200, float("nan"), float("inf"), 10**400, "1", None, True])
def test_weights(weight: Any) -> None:
    with pytest.raises(StatisticsError, match=r"weight = .*expected 0, or 1e-100.*config: data\.statistics\.weighers"):
        ConstantSampleWeigher(weight)
