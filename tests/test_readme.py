"""The code of the README and of the guide runs as it stands there."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import LightningDataModule, Trainer

import ofdft_norm
from ofdft_norm import DimensionWiseRescaling, OFDFTDataModule
from ofdft_norm.example.label_errors import LabelErrors, error_name
from ofdft_norm.example.results import HEADINGS, MODEL, WITHOUT_NETWORK, ResultRow, format_table
from ofdft_norm.normalization.lambda_sources import lambda_sources, sources_table
from tests.printed_tables import check_printed
from tests.test_imports import MODULES

README = Path(__file__).parents[1] / "README.md"
GUIDE = Path(ofdft_norm.__file__).parent / "guide"


def _code_blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


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
    assert len(examples) == 2
    energies = []
    for example in examples:
        namespace: dict[str, Any] = {}
        exec(compile(example, str(README), "exec"), namespace)
        datamodule = namespace["datamodule"]
        assert isinstance(datamodule, OFDFTDataModule)
        assert datamodule.has_normalizer
        energies += namespace.get("energies", [])
    assert len(energies) == 4  # density optimisation
    assert sorted(energies, reverse=True) == energies


def test_the_tables_of_references_and_lambdas_are_those_that_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path / "cache"))
    with initialize_config_dir(str(README.parent / "configs"), version_base="1.3"):
        config = compose("train", overrides=["data=ofdft_norm", "data/reference=linear"])
    datamodule = instantiate(config.data)
    datamodule.setup("fit")
    page = (GUIDE / "statistics.md").read_text()
    assert f"```\n{datamodule.normalizer.reference.summary('hartree')}\n```" in page
    statistics, basis_info = datamodule.statistics, datamodule.basis_info
    rescaling = DimensionWiseRescaling.from_dataset_statistics(statistics, basis_info)
    sources = lambda_sources(statistics, rescaling, basis_info, "has_energy_label")
    assert sources is not None
    assert f"```\n{sources_table(sources, basis_info)}\n```" in page


def test_the_table_of_results_is_laid_out_as_it_is_printed() -> None:
    """Its numbers take minutes to train; headings, rows and sentences do not."""
    block = re.findall(r"```\n(errors in mHa.*?)\n```", README.read_text(), flags=re.DOTALL)[0]
    rows: list[ResultRow] = []
    split, sizes = "", [0, 0]
    for line in block.splitlines()[1:]:
        predictor, *cells = re.split(r"\s{2,}", line)
        if not predictor:
            break  # sentences follow
        if not cells:
            split, sizes = predictor.partition(":")[0], [int(n) for n in re.findall(r"\d+", predictor)]
            continue
        errors = dict.fromkeys(LabelErrors.names("hartree"), 0.0)
        for quantity, cell in zip(HEADINGS, cells, strict=True):
            errors[error_name(quantity, "hartree")] = float("nan") if cell == "-" else float(cell)
        rows.append(ResultRow(split, predictor, *sizes, errors))
    assert [row.predictor for row in rows] == [
        *(name.removesuffix(", no network") for name in WITHOUT_NETWORK),
        MODEL,
    ] * 2
    assert format_table(rows) == block
    check_printed(block)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", sorted(GUIDE.glob("*.md")), ids=lambda page: page.stem)
def test_the_guides_pages_run_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path / "cache"))
    namespace: dict[str, Any] = {}
    for example in _code_blocks("python", page):
        exec(compile(example, str(page), "exec"), namespace)
    if page.stem == "coordinates":
        assert float(namespace["error"].abs().max()) < 1e-6  # the inverse of the initial guess's deviation
    if page.stem == "interatomic_data":
        assert namespace["energies"].shape == (10,)


def _texts(path: Path) -> list[str]:
    """Returns the texts of a module, those with values in them with a hole for each."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text())):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        found = [part.value if isinstance(part, ast.Constant) else "\0" for part in parts]
        texts.append("".join(text for text in found if isinstance(text, str)))
    return texts


def test_the_messages_that_the_guide_quotes_are_those_of_the_package() -> None:
    page = " ".join((GUIDE / "troubleshooting.md").read_text().split())
    quotes = re.findall(r'\*\*"(.+?)(?: \.\.\.)?"\*\*', page)
    assert len(quotes) == 12
    messages = [text for path in MODULES for text in _texts(path)]
    missing = [quote for quote in quotes if not any(quote in message for message in messages)]
    assert not missing


def test_every_page_of_the_guide_is_a_module_that_the_overview_names() -> None:
    pages = {page.stem for page in GUIDE.glob("*.md")}
    assert pages == {module.stem for module in GUIDE.glob("*.py")} - {"__init__", "__main__"}
    overview = (GUIDE / "__init__.py").read_text()
    for page in pages:
        assert f"`ofdft_norm.guide.{page}`" in overview
        assert f".. include:: {page}.md" in (GUIDE / f"{page}.py").read_text()
