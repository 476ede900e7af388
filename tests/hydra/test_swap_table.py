"""Every line of the README's table of normalisations does what it says, and the sweep runs."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.printed_tables import check_printed

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts" / "train.py")
HEADING = "## Swapping normalisations"
SWEEP = "experiment=ablation"  # four runs
# lines for data without density coefficients: see tests/data/test_ase_files.py, tests/example/test_potential.py
OTHER_DATA = ("data/source=ase", "experiment=potential")
QUIET = ("hydra/job_logging=disabled", "hydra/hydra_logging=disabled")


def table() -> list[str]:
    """Returns the overrides of the table's lines."""
    section = (ROOT / "README.md").read_text().partition(HEADING)[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [re.findall(r"`([^`]+)`", row.split("|")[2])[0] for row in rows]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


def test_the_table_shows_every_option_of_the_groups() -> None:
    overrides = " ".join(table())
    for group in ("pre_transforms", "reference", "rescaling"):
        for path in (ROOT / "configs" / "data" / group).glob("*.yaml"):
            default = path.stem in ("atom_ref", "dimension_wise")
            assert default or f"data/{group}={path.stem}" in overrides, f"README lacks data/{group}={path.stem}"


def chosen(config: Any, overrides: list[str]) -> dict[str, str]:
    """Returns what a configuration holds where overrides set a value."""
    keys = [override.partition("=")[0] for override in overrides if "." in override.partition("=")[0]]
    return {key: str(OmegaConf.select(config, key)) for key in keys}


@pytest.mark.filterwarnings("ignore")  # other people's deprecations
@pytest.mark.parametrize("overrides", [x for x in table() if x != SWEEP and not x.startswith(OTHER_DATA)])
def test_line_of_the_table_normalises_batches(
    overrides: str, cache: Path, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    given = shlex.split(overrides)
    settings = (f"data.statistics.dir={cache}", f"output_dir={tmp_path}")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", [*small_run, *settings, *given])
    assert chosen(config, given) == dict(override.split("=") for override in given if override.split("=")[0].count("."))
    datamodule, model = instantiate(config.data), instantiate(config.model)
    datamodule.trainer = instantiate(config.trainer, logger=False)
    datamodule.setup("fit")
    batch = datamodule.on_after_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
    assert batch.normalized.all()
    model.build(datamodule.basis_info)
    energy, gradient = model(batch)
    assert (energy.shape, gradient.shape) == (batch.energy_label.shape, batch.gradient_label.shape)
    assert torch.isfinite(datamodule.normalizer.denormalize_energy(energy, batch)).all()


@pytest.mark.filterwarnings("ignore")
def test_the_sweep_of_the_table_runs_and_fits_once(
    small_run: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert SWEEP in table()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path / "cache"))
    # drawing is half of the time of such short runs
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: path.touch())
    monkeypatch.setattr("sys.argv", [SCRIPT, *QUIET, *small_run, "trainer.fast_dev_run=true", SWEEP])
    runpy.run_path(SCRIPT, run_name="__main__")
    printed = capsys.readouterr().out
    (written,) = (path for path in tmp_path.rglob("results.txt") if not (path.parent / "run.yaml").exists())
    check_printed(written.read_text())
    assert printed.strip().endswith(f"{written.read_text()}folder of all runs: {written.parent}")
    records = [yaml.safe_load(path.read_text()) for path in tmp_path.rglob("run.yaml")]
    assert len(records) == 4
    [fingerprint] = {record["statistics_fingerprint"] for record in records}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{fingerprint[:32]}.zarr.zip"]
