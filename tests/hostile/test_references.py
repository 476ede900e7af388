"""Malformed files of reference energies: each is refused by name, and odd but valid ones are read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ofdft_norm import create_element_references
from ofdft_norm.errors import StatisticsError

ONE = np.zeros(119)
ONE[1] = -0.5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (ONE + 1j, "complex"),
        (np.stack([ONE, ONE]), "shape (2, 119)"),
        (np.array(["a"] * 119), "are no numbers"),
        (np.zeros(119, dtype=[("a", "f8")]), "are no numbers"),
        (ONE[:0], "shape (0,)"),
        (np.array([None] * 119, dtype=object), "cannot be read"),
        ({"element_references": "abc"}, "are no numbers"),
        ({"element_references": torch.zeros(119, dtype=torch.complex64)}, "complex"),
        ({"element_references": torch.zeros(119, device="meta")}, "are no numbers"),
        ({"element_references": torch.from_numpy(ONE), "seen_elements": "xx"}, "are no numbers"),
    ],
)
def test_files_without_a_vector_of_numbers_are_refused(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / ("references.pt" if isinstance(content, dict) else "references.npz")
    if isinstance(content, dict):
        torch.save(content, path)
    else:
        np.savez(path, element_references=content)
    with pytest.raises(StatisticsError) as caught:
        create_element_references(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
