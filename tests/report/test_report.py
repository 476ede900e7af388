"""The report of a run and of statistics: its numbers, and what a browser makes of it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ofdft_norm.errors import ConfigError
from ofdft_norm.example import DensityModule
from ofdft_norm.normalization.lambda_sources import lambda_sources
from ofdft_norm.report.report import ReportConfig, make_report, run_sections
from ofdft_norm.statistics.dataset_statistics import DatasetStatistics
from tests.labelled_molecules import IGNORED, LabelledMolecules

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]

SECTIONS = ["data", "references", "lambda", "sources", "histograms", "results", "range", "configuration", "versions"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# runs in the page: the height of each section, and whether anything is wider than the window
MEASURE = """<script>document.body.dataset.measured = JSON.stringify({
  heights: Object.fromEntries([...document.querySelectorAll("section")].map(s => [s.id, s.clientHeight])),
  pictures: [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect().width),
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth})</script>"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run's folder, as training leaves it."""
    setting: Any = LabelledMolecules(tmp_path_factory.mktemp("run"))
    datamodule, model = setting.datamodule(), DensityModule(width=8, rank=2, n_layers=1, n_radial=4)
    trainer = setting.trainer(inference_mode=False)
    trainer.fit(model, datamodule=datamodule)
    trainer.save_checkpoint(setting.folder / "checkpoints" / "best.ckpt")
    config = {"model": {"_target_": "ofdft_norm.example.DensityModule"}, "note": "a <b> & c"}
    (setting.folder / "config.yaml").write_text(yaml.safe_dump(config))
    (setting.folder / "results.csv").write_text(
        "split,predictor,energy_mae_mHa,gradient_mae_mHa\ntest,model,1.0,123.45\n"
    )
    setting.statistics = datamodule.statistics
    setting.sources = lambda_sources(
        datamodule.statistics, datamodule.normalizer.rescaling, datamodule.basis_info, "has_energy_label"
    )
    setting.page = make_report(ReportConfig(run_dir=str(setting.folder)))
    return setting


def sections(page: str) -> dict[str, str]:
    """The text of each section by its id."""
    found = re.findall(r'<section id="(\w+)">(.*?)</section>', page, flags=re.DOTALL)
    return {name: html.unescape(re.sub(r"<[^>]+>", " ", content)) for name, content in found}


def test_every_section_of_a_run_has_its_numbers(run: Any) -> None:
    page = run.page.read_text()
    found = sections(page)
    assert list(found) == SECTIONS
    assert re.search(r"train\s+4\s", found["data"])
    worst = run.sources.molecules()[0]
    assert re.search(rf"{worst.sample.name}\s+\d+\s+{worst.n_dimensions}\s", found["sources"])
    residual = float(run.statistics.load_statistic("has_energy_label", "energy_minus_linear_ref/abs_max"))
    assert f" {residual:.5f} " in found["references"]
    assert "123.5" in found["results"]
    assert re.search(r"test: model\s+1\s+\d+\s+[\d.]+ ± \?", found["results"])
    held_out = set(re.findall(r"[a-z_]+_acid|methyl_nitrite|nitromethane", found["range"]))
    assert len(held_out) == 2
    assert "a <b> & c" in found["configuration"]
    assert "ofdft_norm" in found["versions"]
    assert page.count("<svg") == 4 + 4 + 2  # of lambda for four elements, histograms, and errors of two splits
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)  # one file: nothing else is loaded


def test_every_column_of_its_tables_is_explained(run: Any) -> None:
    plain = ({"attribute", "value"}, {"what", "version"})
    tables = [table for section in run_sections(run.folder) for table in section.tables]
    assert len(tables) >= 8
    for table in tables:
        if set(table.header) not in plain:
            named = {note.partition(":")[0] for note in table.notes}
            for heading in table.header[1:]:
                name = heading.partition(" [")[0]
                assert {name, name.split()[-1]} & named, f"{table.caption}: {heading}"
            assert all(note in html.unescape(run.page.read_text()) for note in table.notes)


def test_statistics_in_another_unit_are_rescaled_as_in_a_run(run: Any, tmp_path: Path) -> None:
    in_ev = DatasetStatistics.from_arrays(run.statistics.to_arrays(), {**run.statistics.attributes, "unit": "eV"})
    in_ev.save_to(tmp_path / "statistics.zarr")
    text = make_report(
        ReportConfig(statistics=str(tmp_path / "statistics.zarr"), output=str(tmp_path / "a.html"))
    ).read_text()
    assert "s_grad = 1.361 eV" in text  # 0.05 hartree
    assert not re.search(r"\bHa\b|\bmHa\b", text)


def test_statistics_alone(run: Any, tmp_path: Path) -> None:
    run.statistics.save_to(tmp_path / "statistics.zarr")
    path = make_report(
        ReportConfig(statistics=str(tmp_path / "statistics.zarr"), output=str(tmp_path / "of_statistics.html"))
    )
    found = sections(path.read_text())
    assert list(found) == ["data", "references", "lambda", "sources", "configuration", "versions"]
    in_run = sections(run.page.read_text())
    assert found["sources"].split() == in_run["sources"].split()


def test_what_is_wrong_is_told(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        ReportConfig()
    with pytest.raises(ConfigError, match="one of the two"):
        ReportConfig(run_dir="a", statistics="b")
    with pytest.raises(ConfigError, match=r"checkpoints/best\.ckpt .* \(argument run_dir\)"):
        make_report(ReportConfig(run_dir=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"no statistics there \(argument statistics\)"):
        make_report(ReportConfig(statistics=str(tmp_path / "none.zarr")))


def test_a_run_without_its_labels(run: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("labels"))
    run.labels.rename(run.folder / "hidden")
    try:
        found = sections(make_report(ReportConfig(run_dir=str(folder))).read_text())
    finally:
        (run.folder / "hidden").rename(run.labels)
    assert list(found) == SECTIONS
    for name in ("data", "histograms", "results", "range"):
        assert "The samples could not be read" in found[name]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")
def test_a_browser_shows_it_without_an_error(run: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(run.page.read_text().replace("</body>", f"{MEASURE}</body>"))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ":CONSOLE:" not in result.stderr, result.stderr
    measured = json.loads(html.unescape(re.findall(r'data-measured="([^"]*)"', result.stdout)[0]))
    assert list(measured["heights"]) == SECTIONS
    assert min(measured["heights"].values()) > 40
    assert np.min(measured["pictures"]) > 200
    assert measured["overflow"] == 0
