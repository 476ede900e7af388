"""A few label files, for runs that are to be short."""

import json

import pytest

from ofdft_norm.data.embedded_data import EMBEDDED_DATA

SPLIT = {
    "train": ["methane", "ammonia", "water", "hydrogen_fluoride", "dinitrogen", "ethyne", "carbon_monoxide"],
    "val": ["hydrogen_peroxide"],
    "test": ["hydrazine"],
}


@pytest.fixture(autouse=True)
def _loggers_stay_enabled(loggers_stay_enabled: None) -> None:
    """For all tests of this folder."""


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides that restrict the data to nine small molecules; all elements are in the training split."""
    split = {part: [f"{name}.zarr.zip" for name in names] for part, names in SPLIT.items()}
    file = tmp_path_factory.mktemp("split") / "split.json"
    file.write_text(json.dumps(split))
    paths = [str(EMBEDDED_DATA / "labels" / name) for names in split.values() for name in names]
    return (
        "data/source=label_files",
        f"data.source.paths=[{','.join(paths)}]",
        f"data.source.basis_info={EMBEDDED_DATA / 'basis_info.json'}",
        "data/split=file",
        f"data.split.file={file}",
        "data.loader.batch_size=4",
        "data.statistics.progress=false",
    )


@pytest.fixture(scope="session")
def small_run(small_data: tuple[str, ...]) -> tuple[str, ...]:
    """Overrides for short, quiet runs of `scripts/train.py`."""
    return (
        *small_data,
        "logger=csv",
        "model.width=8",
        "model.rank=4",
        "model.n_layers=0",
        "trainer.enable_progress_bar=false",
        "callbacks.log_normalization.plots=false",
    )
