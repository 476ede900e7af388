"""A few embedded molecules, for short runs."""

import json

import pytest

SPLIT = {
    "train": ["methane", "ammonia", "water", "hydrogen_fluoride", "dinitrogen", "ethyne", "carbon_monoxide"],
    "val": ["hydrogen_peroxide"],
    "test": ["hydrazine"],
}


@pytest.fixture(autouse=True)
def _loggers_stay_enabled(loggers_stay_enabled):
    """For all tests of this folder."""


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> tuple[str, ...]:
    """Overrides that restrict the embedded labels to nine molecules; all elements are in the training split."""
    file = tmp_path_factory.mktemp("split") / "split.json"
    file.write_text(json.dumps({part: [f"{name}.zarr.zip" for name in names] for part, names in SPLIT.items()}))
    return ("data/split=file", f"data.split.file={file}", "data.loader.batch_size=4", "data.statistics.progress=false")


@pytest.fixture(scope="session")
def small_run(small_data) -> tuple[str, ...]:
    """Overrides for short, quiet runs of `ofdft-norm train`."""
    return (
        *small_data,
        "logger=csv",
        "model.width=8",
        "model.n_layers=1",
        "trainer.enable_progress_bar=false",
        "callbacks.log_normalization.plots=false",
    )
