"""Settings, splits, bases and reference files that are not what they should be: each is refused in words.

Every case is one line of a table: what is written or given, and words that the message must hold; the message also
names the file, where there is one.
"""

from __future__ import annotations

import json
import re
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
from ofdft_norm.data.dataset_info import read_dataset_info
from ofdft_norm.data.plain_files import LARGEST_DEPTH, read_json, read_yaml
from ofdft_norm.data.split_files import read_split_entries
from ofdft_norm.errors import BasisError, ConfigError, SplitError, StatisticsError

# --- YAML and JSON: the same strict readers for all files -------------------------------------------------------------

DEEP = 100_000
PLAIN = [
    (".yaml", "train: [a]\ntrain: [b]\n", "key 'train' twice"),
    (".yaml", "train: [a]\nval: {x: 1, x: 2}\n", "key 'x' twice"),
    (".yaml", "train: [a]\n<<: {train: [b]}\n", "key 'train' twice"),
    (".yaml", "a: &x [1, 1]\ntrain: [*x, *x]\n", "alias *x"),
    (".yaml", f"train: {'[' * 5000}{']' * 5000}", f"nested more than {LARGEST_DEPTH} deep"),
    (".yaml", f"train: {'[' * 25}{']' * 25}", f"nested more than {LARGEST_DEPTH} deep"),
    (".yaml", "train: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    (".yaml", "? [a]\n: 1", "expected a name or number"),
    (".yaml", "? {a: 1}\n: 1", "expected a name or number"),
    (".yaml", "train: [", "expected the node content"),
    (".yaml", "train: \x01", "special characters"),
    (".yaml", "train: 2020-13-45", "month must be in"),
    (".json", '{"train": ["a"], "train": ["b"]}', "key 'train' twice"),
    (".json", '{"train": [{"x": 1, "x": 2}]}', "key 'x' twice"),
    (".json", "[" * DEEP + "]" * DEEP, f"nested more than {LARGEST_DEPTH} deep"),
    (".json", "[" * 25 + "]" * 25, f"nested more than {LARGEST_DEPTH} deep"),
    (".json", '{"train": NaN}', "holds NaN"),
    (".json", '{"train": [-Infinity]}', "holds -Infinity"),
    (".json", f'{{"train": {"9" * 5000}}}', "4300 digits"),
    (".json", '{"train": ', "Expecting value"),
    (".json", "", "Expecting value"),
]


@pytest.mark.parametrize(("suffix", "text", "words"), PLAIN)
def test_files_that_can_be_read_in_two_ways_or_in_none(tmp_path: Path, suffix: str, text: str, words: str) -> None:
    path = tmp_path / f"split{suffix}"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        (read_yaml if suffix == ".yaml" else read_json)(path)
    with pytest.raises(SplitError) as refused:
        read_split_entries(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)
    if suffix == ".json":
        with pytest.raises(BasisError) as basis:
            BasisInfo.from_json(path)
        assert words in str(basis.value)
        assert str(path) in str(basis.value)
    else:
        with pytest.raises(BasisError) as info:
            read_dataset_info(path)
        assert words in str(info.value)


def test_files_of_other_encodings(tmp_path: Path) -> None:
    for name in ("split.json", "split.yaml"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(SplitError, match=rf"{name}: cannot be read as a split"):
            read_split_entries(tmp_path / name)


def test_what_is_nested_as_deeply_as_allowed_is_read(tmp_path: Path) -> None:
    text = "[" * (LARGEST_DEPTH + 1) + "]" * (LARGEST_DEPTH + 1)
    for name, read in (("a.json", read_json), ("a.yaml", read_yaml)):
        (tmp_path / name).write_text(text)
        assert read(tmp_path / name) == json.loads(text)


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
    ({"training": ["a"]}, "expected the keys ['train', 'val', 'test'], found ['training']"),
    ({"val": ["a"]}, "expected the keys"),
    ({}, "expected the keys"),
    ([["a"]], "expected a mapping"),
    (3, "expected a mapping"),
    (None, "expected a mapping"),
]


@pytest.mark.parametrize(("content", "words"), SPLITS)
def test_splits(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SplitError) as caught:
        read_split_entries(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


# --- the basis --------------------------------------------------------------------------------------------------------

BASES: list[tuple[Any, Any, str]] = [
    ([1], ["6x0o"], "expected '6x0e'"),
    ([1], ["6x0e+2x1e"], "expected '2x1o'"),
    ([1], ["6x0e+2x2o"], "expected '2x2e'"),
    ([1], ["99999999x0e"], "beyond 1000 shells"),
    ([1], ["1001x0e"], "beyond 1000 shells"),
    ([1], ["1x13o"], "l = 12"),
    ([1], ["1x999999999o"], "l = 12"),
    ([1], ["1x9999999999999o"], "cannot read"),
    ([1], [""], "cannot read ''"),
    ([1], ["0x0e"], "has no function"),
    ([1], ["-1x0e"], "cannot read"),
    ([1], ["1x0e+"], "cannot read ''"),
    ([1], ["2x1o+1x0e"], "not sorted by angular momentum"),
    ([1], [None], "cannot read 'None'"),
    ([1], [6], "cannot read '6'"),
    ([], [], "at least one element"),
    ([1, 1], ["1x0e", "1x0e"], "names an element twice"),
    ([0], ["1x0e"], "outside 1 ... 118"),
    ([119], ["1x0e"], "outside 1 ... 118"),
    ([-1], ["1x0e"], "outside 1 ... 118"),
    ([1.5], ["1x0e"], "whole numbers"),
    ([1e30], ["1x0e"], "whole numbers"),
    ([True], ["1x0e"], "whole numbers"),
    (["H"], ["1x0e"], "whole numbers"),
    ([[1]], ["1x0e"], "whole numbers"),
    (1, ["1x0e"], "vector of whole numbers"),
    (None, ["1x0e"], "whole numbers"),
    ([1, 6], ["1x0e"], "2 atomic_numbers but 1 irreps_per_atom"),
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
    (np.array(["a"] * 119), "holds no numbers"),
    (ONE.astype("M8[s]"), "holds no numbers"),
    (np.zeros(119, dtype=[("a", "f8")]), "holds no numbers"),
    (np.where(ONE != 0, np.nan, 0), "not finite"),
    (np.where(ONE != 0, -np.inf, 0), "not finite"),
    (ONE[:1], "shape (1,)"),
    (ONE[:0], "shape (0,)"),
    (np.array(1.0), "shape ()"),
    (np.array([None] * 119, dtype=object), "cannot be read as plain arrays"),
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
        ({"element_references": "abc"}, "holds no numbers"),
        ({"element_references": None}, "holds no numbers"),
        ({"element_references": torch.zeros(119, dtype=torch.complex64)}, "complex"),
        ({"element_references": torch.zeros(119, device="meta")}, "holds no numbers"),
        ({"element_references": torch.from_numpy(ONE), "seen_elements": "xx"}, "'seen_elements' holds no numbers"),
        ({"other": torch.from_numpy(ONE)}, "lacks 'element_references'"),
        ([torch.from_numpy(ONE)], "expected a state dict"),
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


@pytest.mark.parametrize("name", ["s_coeff", "s_grad", "epsilon"])
@pytest.mark.parametrize("value", [-1.0, 1e-320, 1e-200, 1e200, float("nan"), float("inf")])
def test_scales_that_make_lambda_infinite_or_zero(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = .*1e-100 \.\.\. 1e\+100.*config: data\.rescaling\.{name}"):
        DimensionWiseRescaling(np.zeros(2), np.ones(2), np.ones(2), **{name: value})


@pytest.mark.parametrize("weight", [-1, 1e200, 1e-200, float("nan"), float("inf"), 10**400, "1", None, True])
def test_weights(weight: Any) -> None:
    with pytest.raises(StatisticsError, match=r"weight = .*expected 0 or a number.*config: data\.statistics\.weighers"):
        ConstantSampleWeigher(weight)
