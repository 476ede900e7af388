"""The guide's code runs as it stands there, its tables are the printed ones, and it names the whole API."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate

import ofdft_norm
import ofdft_norm.config
from ofdft_norm.cli import main
from tests.hydra.composing import composed
from tests.pages import GUIDE, code_blocks, commands


@pytest.mark.filterwarnings("ignore")  # Lightning advises every reader
@pytest.mark.parametrize(
    "page", [page for page in sorted(GUIDE.glob("*.md")) if code_blocks("python", page)], ids=lambda page: page.stem
)
def test_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path / "cache"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for example in code_blocks("python", page):
        exec(compile(example, str(page), "exec"), namespace)
    if page.stem == "coordinates":
        assert float(namespace["error"].abs().max()) < 1e-6  # the inverse of the initial guess's deviation
        energies = namespace["energies"]  # of the density optimisation
        assert sorted(energies, reverse=True) == energies


XYZ = "2\n\nH 0 0 0\nH 0 0 0.74\n2\nmol_id=long\nH 0 0 0\nH 0 0 0.85\n2\nmol_id=short\nH 0 0 0\nH 0 0 0.7\n"
QUICK = {
    "labels": ["workers=1"],
    "train": [
        *("data.split.train=0.34", "data.split.val=0.33", "data.split.test=0.33"),  # one molecule each
        *("output_dir=outputs/run", "hydra.run.dir=outputs/run", "logger=none", "model.width=8", "model.n_layers=1"),
        *("trainer.max_epochs=1", "trainer.enable_progress_bar=false"),
    ],
    "predict": ["accelerator=cpu"],
}


@pytest.mark.filterwarnings("ignore")
def test_the_page_on_own_labels_leads_to_predictions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path / "cache"))
    Path("molecules.xyz").write_text(XYZ)
    typed = list(commands(GUIDE / "density_labels.md"))
    assert [words[0] for words in typed] == ["labels", "train", "predict"]
    for name, *words in typed:
        assert main([name, *(word.replace("outputs/...", "outputs/run") for word in words), *QUICK[name]]) == 0
    with np.load("predictions.npz") as predicted:
        assert set(predicted["mol_id"]) == {"H2_0", "long", "short"}
        assert np.isfinite(predicted["energy"]).all()


def test_the_tables_of_the_guide_are_those_that_are_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path / "cache"))
    default, linear = (instantiate(composed("train", *o).data) for o in ([], ["data/reference=linear"]))
    printed = default.summary() + "\n\n" + linear.normalizer.reference.summary("hartree").__str__()
    for page in ("statistics.md", "what_normalisation_did.md"):
        for table in re.findall(r"```\n(.*?)\n```", (GUIDE / page).read_text(), flags=re.DOTALL):
            assert table in printed, page


def test_the_api_pages_name_every_public_name():
    pages = "".join(page.read_text() for page in (GUIDE / "api").glob("*.md"))
    named = {name.rpartition(".")[2] for name in re.findall(r"::: (\S+)", pages)}
    public = {*ofdft_norm.__all__, *ofdft_norm.config.__all__} - {"__version__"}
    assert named == public
