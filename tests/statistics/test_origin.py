from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ofdft_norm import BasisTransforms, DatasetStatistics, LocalFrames, OFDFTDataModule, ProjectGradient
from ofdft_norm.config import LabelFiles, SplitConfig, StatisticsConfig
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.errors import NormalizationError, StatisticsError

pytestmark = pytest.mark.filterwarnings("ignore:the basis has the elements")  # four molecules do not have them all

PATHS = [str(EMBEDDED_DATA / "labels" / f"{name}.zarr.zip") for name in ("water", "methane", "methanol", "ethane")]
FRAMES = [BasisTransforms([LocalFrames()]), ProjectGradient()]


def datamodule(statistics: StatisticsConfig, pre_transforms: Any = None, **source: Any) -> OFDFTDataModule:
    labels = LabelFiles(paths=PATHS, basis_info=str(EMBEDDED_DATA / "basis_info.json"), **source)
    split = SplitConfig(0.5, 0.25, 0.25)
    return OFDFTDataModule(
        labels, split=split, statistics=statistics, pre_transforms=pre_transforms, unseen_elements="identity"
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """StatisticsConfig of projected labels in the coordinates that they are stored in."""
    folder = tmp_path_factory.mktemp("statistics")
    fitted = datamodule(StatisticsConfig(dir=str(folder / "cache"), progress=False))
    fitted.setup("fit")
    fitted.statistics.save_to(folder / "given.zarr")
    return folder / "given.zarr"


def test_statistics_say_what_they_were_taken_of(given: Path) -> None:
    attributes = DatasetStatistics(given).attributes
    assert attributes["pre_transforms"] == ["ProjectGradient()"]
    assert (attributes["energy_key"], attributes["gradient_key"]) == ("e_kin", "grad_kin")
    assert attributes["coordinates"] == "natural_symmetric"


def test_those_taken_alike_are_used(given: Path) -> None:
    module = datamodule(StatisticsConfig(path=str(given)))
    module.setup("fit")
    assert module.normalizer.coordinates == "natural_symmetric"
    assert len(next(iter(module.train_dataloader())).coordinates) > 1


def test_those_taken_after_other_pre_transforms_are_refused_with_both_lists(given: Path) -> None:
    message = r"pre_transforms = \['ProjectGradient\(\)'\].*\['BasisTransforms\(.*LocalFrames\(\).*data\.pre_transforms"
    with pytest.raises(StatisticsError, match=message):
        datamodule(StatisticsConfig(path=str(given)), FRAMES).setup("fit")


def test_those_of_another_target_are_refused(given: Path) -> None:
    target = {"energy_key": "e_kin_plus_xc", "gradient_key": "grad_kin_plus_xc"}
    with pytest.raises(StatisticsError, match=r"energy_key = e_kin, but .* e_kin_plus_xc.*data\.source\.energy_key"):
        datamodule(StatisticsConfig(path=str(given)), **target).setup("fit")


def test_those_that_do_not_say_are_believed(given: Path, tmp_path: Path) -> None:
    statistics = DatasetStatistics(given)
    silent = DatasetStatistics.from_arrays(statistics.to_arrays(), {"basis_info": statistics.attributes["basis_info"]})
    silent.save_to(tmp_path / "silent.zarr")
    module = datamodule(StatisticsConfig(path=str(tmp_path / "silent.zarr")), FRAMES)
    module.setup("fit")
    assert module.normalizer.coordinates is None


def test_samples_in_other_coordinates_than_the_normaliser_are_refused(given: Path) -> None:
    module = datamodule(StatisticsConfig(path=str(given)))
    module.setup("fit")
    sample = BasisTransforms([])(datamodule(StatisticsConfig()).raw_datasets["all"][0])
    message = r"coordinates 'raw', but the normaliser was fitted in 'natural_symmetric'.*data\.pre_transforms"
    with pytest.raises(NormalizationError, match=message):
        module.normalizer.normalize(sample)
    del sample.coordinates
    module.normalizer.normalize(sample)
