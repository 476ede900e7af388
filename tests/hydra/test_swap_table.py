"""Every row of the tables of normalisations, in the guide and in README, normalises; the sweep runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ofdft_norm.cli import main
from tests.hydra.composing import composed

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "ofdft_norm" / "guide" / "swapping.md", ROOT / "README.md")
SWEEP = "experiment=ablation"  # four runs
# rows for data without density coefficients, which other tests train on
OTHER_DATA = ("model=potential", "experiment=potential", "data/source=")
QUIET = ("hydra/job_logging=disabled", "hydra/hydra_logging=disabled")


def table() -> list[str]:
    """Returns the overrides of the tables' rows, each once."""
    rows = [line for page in PAGES for line in page.read_text().splitlines() if line.startswith("|")]
    cells = [re.findall(r"`([^`]+=[^`]+)`", row.split("|")[2])[:1] for row in rows]
    return list(dict.fromkeys(cell[0] for cell in cells if cell))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("statistics")


def test_the_table_shows_every_option_of_the_groups():
    defaults = {"data/reference=atom_ref", "data/rescaling=dimension_wise"}
    groups = ("pre_transforms", "reference", "rescaling")
    options = {f"data/{group}={p.stem}" for group in groups for p in (ROOT / "configs" / "data" / group).glob("*.yaml")}
    assert options - defaults <= set(" ".join(table()).split())
    assert len(table()) >= 24


@pytest.mark.filterwarnings("ignore")  # deprecations in other packages
@pytest.mark.parametrize("overrides", [x for x in table() if x != SWEEP and not x.startswith(OTHER_DATA)])
def test_line_of_the_table_normalises_batches(overrides, cache, small_run, tmp_path):
    given = shlex.split(overrides)
    settings = (f"data.statistics.dir={cache}", f"output_dir={tmp_path}")
    config = composed("train", *small_run, *settings, *given)
    values = dict(override.split("=") for override in given if "." in override.split("=")[0])
    assert {key: str(OmegaConf.select(config, key)) for key in values} == values
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
def test_the_sweep_of_the_table_runs_and_fits_once(small_run, tmp_path, monkeypatch, capsys):
    assert SWEEP in table()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path / "cache"))
    # drawing is half of the time of such short runs
    monkeypatch.setattr("matplotlib.figure.Figure.draw", lambda *_: None)
    main(["train", *QUIET, *small_run, "trainer.fast_dev_run=true", SWEEP])
    printed = capsys.readouterr().out
    (written,) = (path for path in tmp_path.rglob("results.txt") if not (path.parent / "run.yaml").exists())
    assert printed.strip().endswith(f"{written.read_text()}folder of all runs: {written.parent}")
    rows = [re.split(r"\s{2,}", line)[0] for line in written.read_text().splitlines()]
    arms = [f"{a}, {b}" for a in ("none", "atom_ref") for b in ("none", "dimension_wise")]
    shown = ["composition", *arms]
    assert rows[0] == "4 runs, by data/reference, data/rescaling"
    assert [row for row in rows if row in shown] == shown
    records = [yaml.safe_load(path.read_text()) for path in tmp_path.rglob("run.yaml")]
    assert len(records) == 4
    [fingerprint] = {record["statistics_fingerprint"] for record in records}
    [cached] = (tmp_path / "cache").iterdir()
    assert cached.stem.startswith(fingerprint[:16])
