from typing import Any

import pytest

from ofdft_norm import BasisInfo, OFDataset
from ofdft_norm.data.coordinates import stated_coordinates
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.errors import LabelFileError


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, "raw"),
        ({"coordinates": "local_frames"}, "local_frames"),
        ({"settings": {"natural_reparametrization": True}}, "natural_symmetric"),
        ({"settings": {"natural_reparametrization": False}}, "raw"),
        ({"settings": {"natural_reparametrization": True}, "coordinates": "raw"}, "raw"),
    ],
)
def test_label_files_say_what_their_vectors_are_given_in(attributes: dict[str, Any], expected: str) -> None:
    assert stated_coordinates(attributes, "water.zarr") == expected


def test_something_else_than_a_name_is_refused() -> None:
    with pytest.raises(
        LabelFileError, match=r"water\.zarr: attribute 'coordinates' is 3.*'raw'.*data\.source\.exclude"
    ):
        stated_coordinates({"coordinates": 3}, "water.zarr")


def test_samples_carry_them_and_their_basis(labels: Any) -> None:
    basis_info = BasisInfo.from_json(EMBEDDED_DATA / "basis_info.json")
    embedded = OFDataset([EMBEDDED_DATA / "labels" / "water.zarr.zip"], basis_info)
    assert embedded[0].coordinates == "natural_symmetric"
    assert embedded[0].basis_info is basis_info
    assert embedded.molecule_batch(0).coordinates == ["natural_symmetric"] * len(embedded)
    foreign = OFDataset([labels.write()], labels.basis_info)
    assert foreign[0].coordinates == "raw"
    assert foreign.molecule_batch(0).basis_info == [labels.basis_info] * len(foreign)
