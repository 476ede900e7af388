"""The README's code runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import LightningDataModule, Trainer

from ofdft_norm import OFDFTDataModule

README = Path(__file__).parents[1] / "README.md"


def _code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore")  # Lightning advises on workers and logging intervals, as it does every reader
def test_the_example_under_a_lightning_module_of_ones_own_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = next(block for block in _code_blocks("python") if "LightningModule" in block)
    assert len(example.splitlines()) <= 25 + example.count("\n\n"), "the README promises at most 25 lines of code"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path / "cache"))
    namespace: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), namespace)
    assert isinstance(namespace["datamodule"], LightningDataModule)
    trainer = namespace["trainer"]
    assert isinstance(trainer, Trainer)
    assert trainer.current_epoch == 2
    assert "dtype=torch.float64" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_all_other_python_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path / "cache"))
    examples = [block for block in _code_blocks("python") if "LightningModule)" not in block]
    assert len(examples) == 5
    results: dict[str, Any] = {}
    for example in examples:
        namespace: dict[str, Any] = {}
        exec(compile(example, str(README), "exec"), namespace)
        datamodule = namespace["datamodule"]
        assert isinstance(datamodule, OFDFTDataModule)
        assert datamodule.has_normalizer
        results.update(namespace)
    energies = results["energies"]
    assert sorted(energies, reverse=True) == energies  # density optimisation
    assert float(results["error"].abs().max()) < 1e-6  # the inverse of the initial guess's deviation


def test_the_table_of_references_is_the_one_that_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path / "cache"))
    with initialize_config_dir(str(README.parent / "configs"), version_base="1.3"):
        config = compose("train", overrides=["data=ofdft_norm", "data/reference=linear"])
    datamodule = instantiate(config.data)
    datamodule.setup("fit")
    assert f"```\n{datamodule.normalizer.reference.summary('hartree')}\n```" in README.read_text()
