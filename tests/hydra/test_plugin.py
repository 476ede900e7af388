"""A foreign application finds the package's config groups, installed from a wheel or editable."""

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from ofdft_norm import DatasetStatistics

ROOT = Path(__file__).parents[2]
QUIET = ("hydra/job_logging=disabled", "hydra/hydra_logging=disabled")

TRAIN = """\
import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    datamodule = hydra.utils.instantiate(cfg.data)
    datamodule.setup("fit")
    print("batch of", next(iter(datamodule.train_dataloader())).num_graphs, datamodule.normalizer.reference)


if __name__ == "__main__":
    main()
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Returns what a command prints, without the variables that would change what is tested."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HYDRA_FULL_ERROR", "COMP_LINE")}
    words, env = [str(part) for part in command], {**inherited, "PYTHONWARNINGS": "ignore", **environment}
    done = subprocess.run(words, cwd=cwd, env=env, text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done + done.stderr
    return done.stdout


def new_environment(folder: Path, *install: str | Path) -> Path:
    """Makes an environment that sees the present one's packages, but none of its editable installs; returns its Python.

    Installs without network and without dependencies.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # a .pth file adds a folder, but the .pth files in that folder are not processed
    Path(packages, "host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    if install:
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        run(*pip, "--no-deps", "--no-index", "--no-build-isolation", *install, cwd=folder)
    return python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel that was built from an sdist that was built from the checkout."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The Python of an environment in which the wheel is installed; its path has a space."""
    return new_environment(tmp_path_factory.mktemp("an environment") / "env", wheel)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("statistics")


@pytest.fixture
def app(tmp_path) -> Path:
    """A foreign application: a main function that instantiates, and a `data` group of its own."""
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "conf" / "train.yaml").write_text("defaults:\n  - _self_\n  - data: mnist\n")
    (tmp_path / "conf" / "data" / "mnist.yaml").write_text("_target_: mnist.DataModule\n")
    return tmp_path


@pytest.fixture
def train(app, python, cache) -> Callable[..., str]:
    """Runs the foreign application in the environment with the wheel."""
    return partial(run, python, "train.py", cwd=app, OFDFT_NORM_CACHE=str(cache))


def search_path(output: str) -> list[Any]:
    rows = [line.strip("| \n").split("|") for line in output.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in row) for row in rows[1:]]


def test_wheel_holds_the_plugin_once_and_all_config_files(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if "hydra_plugins" in name] == ["hydra_plugins/ofdft_norm_searchpath.py"]
    shipped = {name.removeprefix("ofdft_norm/configs/") for name in names if name.startswith("ofdft_norm/configs/")}
    assert shipped == {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")}
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"hydra_plugins", "ofdft_norm"}


def test_wheel_has_the_command(python, tmp_path, cache):
    command = python.parent / "ofdft-norm"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert run(command, "--version", cwd=tmp_path).strip() == project["version"]
    composed = yaml.safe_load(run(command, "train", "--cfg", "job", "experiment=debug", cwd=tmp_path))
    assert composed["trainer"]["limit_train_batches"] == 2


def test_wheel_adds_its_folder_after_the_applications_own(train, python):
    rows = search_path(train("--info", "searchpath"))
    assert [provider for provider, _ in rows] == ["hydra", "main", "ofdft_norm", "schema"]
    folder = Path(dict(rows)["ofdft_norm"].removeprefix("ofdft-norm://"))
    assert folder.is_relative_to(python.parents[1])
    assert (folder / "data" / "ofdft_norm.yaml").is_file()


def test_editable_install_uses_the_checkouts_configs(app, tmp_path):
    executable = new_environment(tmp_path / "env", "--editable", ROOT)
    rows: dict[str, str] = dict(search_path(run(executable, "train.py", "--info", "searchpath", cwd=app)))
    assert rows["ofdft_norm"] == f"ofdft-norm://{ROOT / 'configs'}"


def test_composing_imports_neither_the_package_nor_torch_and_the_applications_own_files_win(python, app):
    code = """
import runpy, sys
sys.argv = ["train.py", "--cfg", "job", "data=ofdft_norm"]
runpy.run_path("train.py", run_name="__main__")
assert not {"ofdft_norm", "torch", "lightning", "numpy"} & sys.modules.keys()
"""
    split = {"_target_": "ofdft_norm.config.SplitConfig", "train": 0.5}
    (app / "conf" / "data" / "split").mkdir()
    (app / "conf" / "data" / "split" / "random.yaml").write_text(yaml.safe_dump(split))
    composed = yaml.safe_load(run(python, "-c", code, cwd=app))
    assert (composed["data"]["_target_"], composed["data"]["split"]) == ("ofdft_norm.OFDFTDataModule", split)


def test_hydra_1_4_finds_the_same_classes_by_their_entry_points(python, app):
    code = """
from importlib.metadata import entry_points
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
scanned = {*Plugins.instance().discover(SearchPathPlugin), *Plugins.instance().class_name_to_class.values()}
points = entry_points(group="hydra.plugins")
assert {"ofdft_norm", "ofdft_norm_configs"} <= points.names
assert {point.load() for point in points if point.name.startswith("ofdft_norm")} <= scanned, (points, scanned)
"""
    run(python, "-c", code, cwd=app)


def test_plugin_of_a_removed_package_leaves_applications_alone(tmp_path, app):
    shutil.copytree(ROOT / "ofdft_norm" / "hydra_app" / "hydra_plugins", app / "hydra_plugins")
    executable = new_environment(tmp_path / "env")
    rows = search_path(run(executable, "train.py", "--info", "searchpath", cwd=app))
    assert [provider for provider, _ in rows] == ["hydra", "main", "schema"]


def test_application_trains_in_a_sweep(train, app, cache, small_data):
    swept = train("-m", "data=ofdft_norm", *small_data, "data/reference=atom_ref,none")
    assert "batch of 4 AtomRef" in swept
    assert "batch of 4 None" in swept
    assert {path.name for path in next(app.glob("multirun/*/*")).iterdir()} >= {"0", "1"}
    (statistics,) = cache.iterdir()  # fitted once
    assert DatasetStatistics(statistics).keys_recursive()


def test_wrong_settings_are_readable_in_the_application(app, monkeypatch, capsys):
    imported = TRAIN.replace("import hydra\n", "import hydra\nfrom ofdft_norm import readable_errors\n")
    (app / "train.py").write_text(imported.replace("@hydra", "@readable_errors\n@hydra"))
    monkeypatch.chdir(app)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr("sys.argv", [str(app / "train.py"), *QUIET, "data=ofdft_norm", "data.rescaling.s_gard=1"])
    with pytest.raises(SystemExit) as stopped:  # in this process, where Hydra finds the installed package, too
        runpy.run_path(str(app / "train.py"), run_name="__main__")
    assert stopped.value.code == 1
    printed = capsys.readouterr().err
    assert "error: Key 's_gard' is not in struct" in printed
    assert "Traceback" not in printed
