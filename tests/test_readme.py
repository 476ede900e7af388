"""The code of the README runs as it stands there, its commands are valid, and its links lead somewhere."""

import re
from typing import Any

import pytest

from ofdft_norm.example.metrics import LabelErrors, name_error
from ofdft_norm.example.results import HEADINGS, ResultRow, describe_accuracy, format_table
from tests.pages import GUIDE, README, check_command, code_blocks, commands


@pytest.mark.filterwarnings("ignore")  # Lightning advises on workers and logging intervals, as it does every reader
def test_the_example_of_a_lightning_module_runs(tmp_path, monkeypatch, capsys):
    (example,) = code_blocks("python", README)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(tmp_path / "cache"))
    first, second = code_blocks("bash", README)[:2]  # `.ci/run` types them
    assert (first.strip()[-29:], second.strip()[-9:]) == ("ofdft-norm train data=ofdft_norm"[-29:], "&& pytest")
    namespace: dict[str, Any] = {}
    exec(compile(example, str(README), "exec"), namespace)
    assert namespace["trainer"].current_epoch == 2
    assert "dtype=torch.float64" in capsys.readouterr().out


@pytest.mark.parametrize("page", [README, *sorted(GUIDE.glob("*.md"))], ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_valid_and_its_links_lead_to_files(page, monkeypatch):
    monkeypatch.setenv("DFT_DATA", "/data")
    for words in commands(page):
        check_command(words)
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_table_of_results_is_laid_out_as_it_is_printed():
    """Its numbers take minutes to train; headings and rows do not."""
    block = re.findall(r"<!-- results -->\n```\n(.*?)\n```", README.read_text(), flags=re.DOTALL)[0]
    rows: list[ResultRow] = []
    for line in block.splitlines()[2:-1]:
        predictor, *cells = re.split(r"\s{2,}", line.strip())
        if not cells:
            split, n_molecules = predictor.partition(" ")[0], int(re.findall(r"\d+", predictor)[0])
            continue
        errors = dict.fromkeys(LabelErrors.names("hartree"), 0.0)
        for quantity, cell in zip(HEADINGS[LabelErrors], cells, strict=True):
            errors[name_error(quantity, "hartree")] = float("nan") if cell == "-" else float(cell)
        rows.append(ResultRow(split, predictor, "", n_molecules, n_samples=0, errors=errors))
    assert f"{format_table(rows)}\n{describe_accuracy(rows)}" == block
