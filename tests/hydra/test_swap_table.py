"""Every line of the README's table of normalisations runs."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts" / "train.py")
HEADING = "## Swapping normalisations"
QUIET = ("hydra/job_logging=disabled", "hydra/hydra_logging=disabled")


def table() -> list[str]:
    """Returns the overrides of the table's lines."""
    section = (ROOT / "README.md").read_text().partition(HEADING)[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [re.findall(r"`([^`]+)`", row.split("|")[2])[0] for row in rows]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


def test_the_table_shows_every_option_of_the_two_groups() -> None:
    overrides = " ".join(table())
    for group in ("reference", "rescaling"):
        for path in (ROOT / "configs" / "data" / group).glob("*.yaml"):
            default = path.stem in ("atom_ref", "dimension_wise")
            assert default or f"data/{group}={path.stem}" in overrides, f"README lacks data/{group}={path.stem}"


@pytest.mark.filterwarnings("ignore")  # other people's deprecations
@pytest.mark.parametrize("overrides", table())
def test_line_of_the_table_runs(
    overrides: str, cache: Path, small_run: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFDFT_NORM_CACHE", str(cache))
    given = shlex.split(overrides)
    monkeypatch.setattr("sys.argv", [SCRIPT, *QUIET, *small_run, "trainer.fast_dev_run=true", *given])
    runpy.run_path(SCRIPT, run_name="__main__")
    records = [yaml.safe_load(path.read_text()) for path in tmp_path.rglob("run.yaml")]
    assert len(records) == (4 if "ablation" in overrides else 1)
    assert len({record["statistics_fingerprint"] for record in records}) == 1  # a sweep shares one fit
    for override in given:
        key, _, value = override.partition("=")
        if "." in key and not value.startswith("{"):
            node = records[0]["config"]
            for part in key.split("."):
                node = node[part]
            assert str(node) == value
