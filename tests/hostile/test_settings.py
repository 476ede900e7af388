"""Malformed settings, splits, bases and reference files: each is refused.

Every case is one line of a table: the input, and words of the message, which also names the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import BasisInfo, ConstantSampleWeigher, create_element_references
from ofdft_norm.data.split import read_split
from ofdft_norm.errors import BasisError, SplitError, StatisticsError


def refuses(read: Callable[[Path], Any], path: Path, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        read(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "text", "words"),
    [
        (".yaml", f"train: {'[' * 5000}{']' * 5000}", "cannot be read"),
        (".yaml", "train: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (".yaml", "? [a]\n: 1", "cannot be read"),
        (".yaml", "train: \x01", "special characters"),
        (".json", "[" * 100_000 + "]" * 100_000, "cannot be read"),
        (".json", '{"train": NaN}', "NaN"),
        (".json", '{"train": ', "Expecting value"),
        (".json", "\udcff", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, suffix: str, text: str, words: str) -> None:
    path = tmp_path / f"split{suffix}"
    path.write_text(text, errors="surrogateescape")
    refuses(read_split, path, SplitError, words)
    read_basis = BasisInfo.from_json if suffix == ".json" else lambda path: BasisInfo.from_dataset_info_yaml(path, [1])
    refuses(read_basis, path, BasisError, "")


ENTRY = "expected the name of a label file"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *(({"train": [["QM9", "a.zarr", n]]}, ENTRY) for n in (1e30, 10**30, 0, 2.5, None)),
        *(({"train": [entry]}, ENTRY) for entry in (["QM9", ["a"], 3], ["QM9", "a"], {"a": 1}, None)),
        ({"train": "a"}, "train is a str, expected a list"),
        ({"train": {"a": 1}}, "train is a dict, expected a list"),
        ({"training": ["a"]}, "with the keys ['train', 'val', 'test'] and test_..., found ['training']"),
        ({}, "with the keys"),
        ([["a"]], "expected a mapping"),
        (None, "expected a mapping"),
    ],
)
def test_splits(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "split.json").write_text(json.dumps(content))
    refuses(read_split, tmp_path / "split.json", SplitError, words)


@pytest.mark.parametrize(
    ("elements", "irreps", "words"),
    [
        ([1], ["6x0e+2x2o"], "expected the parity (-1)^l"),
        ([1], ["99999999x0e"], "expected terms such as"),
        ([1], ["1x13o"], "with l up to 12"),
        ([1], [""], "expected terms such as"),
        ([1], ["0x0e"], "has no function"),
        ([1], ["2x1o+1x0e"], "not sorted by angular momentum"),
        ([1], [6], "expected terms such as"),
        ([], [], "0 atomic_numbers and 0 irreps_per_atom"),
        ([1, 1], ["1x0e", "1x0e"], "expected different numbers"),
        ([119], ["1x0e"], "expected different numbers, 1 ... 118"),
        ([1.5], ["1x0e"], "whole numbers"),
        ([True], ["1x0e"], "whole numbers"),
        (["H"], ["1x0e"], "whole numbers"),
        (1, ["1x0e"], "vector of whole numbers"),
        (None, ["1x0e"], "whole numbers"),
        ([1], None, "NoneType"),
    ],
)
def test_bases(tmp_path: Path, elements: Any, irreps: Any, words: str) -> None:
    path = tmp_path / "basis_info.json"
    path.write_text(json.dumps({"atomic_numbers": elements, "irreps_per_atom": irreps}))
    refuses(BasisInfo.from_json, path, BasisError, words)


ONE = np.zeros(119)
ONE[1] = -0.5


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (ONE + 1j, "complex"),
        (np.stack([ONE, ONE]), "shape (2, 119)"),
        (np.array(["a"] * 119), "are no numbers"),
        (np.zeros(119, dtype=[("a", "f8")]), "are no numbers"),
        (ONE[:0], "shape (0,)"),
        (np.array([None] * 119, dtype=object), "cannot be read"),
    ],
)
def test_reference_files(tmp_path: Path, array: Any, words: str) -> None:
    np.savez(tmp_path / "references.npz", element_references=array)
    refuses(create_element_references, tmp_path / "references.npz", StatisticsError, words)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"element_references": "abc"}, "are no numbers"),
        ({"element_references": torch.zeros(119, dtype=torch.complex64)}, "complex"),
        ({"element_references": torch.zeros(119, device="meta")}, "are no numbers"),
        ({"element_references": torch.from_numpy(ONE), "seen_elements": "xx"}, "are no numbers"),
    ],
)
def test_reference_states(tmp_path: Path, state: Any, words: str) -> None:
    torch.save(state, tmp_path / "references.pt")
    refuses(create_element_references, tmp_path / "references.pt", StatisticsError, words)


def test_columns_rows_and_other_precisions_are_references(tmp_path: Path) -> None:
    for array in (ONE[:, None], ONE[None], ONE.astype(np.float16), (2 * ONE).astype(int) / 2):
        np.savez(tmp_path / "references.npz", element_references=array)
        assert create_element_references(tmp_path / "references.npz").element_references[1] == -0.5


@pytest.mark.parametrize("weight", [-1, 1e200, float("nan"), 10**400, "1", True])
def test_weights(weight: Any) -> None:
    with pytest.raises(StatisticsError, match=r"weight = .*expected 0, or 1e-100.*config: data\.statistics\.weighers"):
        ConstantSampleWeigher(weight)
