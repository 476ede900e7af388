"""The guide's page on own labels, typed as it stands: a few molecules, a model, predictions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

pytest.importorskip("pyscf")

from ofdft_norm.commands import generate_labels
from ofdft_norm.example.prediction import predict
from ofdft_norm.example.training import train

ROOT = Path(__file__).parents[2]
XYZ = "2\n\nH 0 0 0\nH 0 0 0.74\n2\nmol_id=long\nH 0 0 0\nH 0 0 0.85\n2\nmol_id=short\nH 0 0 0\nH 0 0 0.7\n"
QUICK = {
    "train": [
        *("data.split.train=0.34", "data.split.val=0.33", "data.split.test=0.33"),  # one molecule each
        *("data.statistics.dir=cache", "output_dir=outputs/run", "logger=csv", "model.width=8", "model.rank=4"),
        *("trainer.max_epochs=2", "trainer.enable_progress_bar=false"),
    ],
    "predict": ["accelerator=cpu"],
}


def commands() -> Iterator[list[str]]:
    """Yields the words of each command of the page."""
    page = (ROOT / "ofdft_norm" / "guide" / "density_labels.md").read_text()
    section = re.search(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    assert section is not None
    for line in section[1].replace("\\\n", " ").splitlines():
        yield shlex.split(line)


def composed(name: str, overrides: list[str]) -> Any:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, [*overrides, *QUICK[name]])


@pytest.mark.filterwarnings("ignore")  # Lightning advises every reader
@pytest.mark.usefixtures("forked_workers")
def test_the_page_leads_from_geometries_to_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "molecules.xyz").write_text(XYZ)
    typed = list(commands())
    assert [words[:2] for words in typed] == [
        ["pip", "install"],
        *(["ofdft-norm", name] for name in ("labels", "train", "predict")),
    ]
    assert generate_labels.main(typed[1][2:]) == 0
    train(composed("train", typed[2][2:]))
    predict(composed("predict", [word.replace("outputs/...", "outputs/run") for word in typed[3][2:]]))
    with np.load("predictions.npz") as predicted:
        assert set(predicted["mol_id"]) == {"H2_0", "long", "short"}
        assert np.isfinite(predicted["energy"]).all()
        assert np.nanmax(np.abs(predicted["energy"] - predicted["energy_label"])) < 2

    # a checkpoint of H, C, N, O and F, which was trained elsewhere
    golden = ROOT / "tests" / "golden" / "checkpoint_0_1_0.ckpt"
    other = [f"ckpt_path={golden}" if word.startswith("ckpt_path=") else word for word in typed[3][2:]]
    predict(composed("predict", other))
    with np.load("predictions.npz") as predicted:
        assert set(predicted["mol_id"]) == {"H2_0", "long", "short"}
        assert np.isfinite(predicted["energy"]).all()
        assert set(predicted["n_basis"]) == {40}
    capsys.readouterr()
