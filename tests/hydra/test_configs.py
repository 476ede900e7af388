"""Every config file explains itself, composes, and instantiates."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, get_method
from omegaconf import DictConfig, OmegaConf

import ofdft_norm
from ofdft_norm.config.readable_errors import config_dir, config_files
from ofdft_norm.settings import plain

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
OPTIONS = [name for name in FILES if "/" in name and not name.startswith("hydra/")]  # Hydra's own come with any run
# what an option needs beside itself
NEEDS = {
    "data/source/label_files": ["data.source.paths=labels", "data.source.basis_info=basis_info.json"],
    "data/source/ase": ["data.source.paths=data.xyz", "data/reference=linear", "data/rescaling=none"],
    "data/source/packed": ["data.source.paths=packed"],
    "data/source/structures25": ["data.source.root=."],
    "data/source/samples": ["data.source.path=samples.npz", "data.source.basis_info=basis_info.json"],
    "data/source/datamodule": ["data.source.datamodule={_target_: lightning.LightningDataModule}"],
    "data/split/file": ["data.split.file=split.yaml"],
    "data/reference/fixed": ["data.reference.file=references.npz", "data.reference.values=null"],
    "trainer/gpu": ["trainer.accelerator=cpu"],
}


def composed(name: str, *overrides: str) -> DictConfig:
    """Composes a run with one option."""
    group, _, option = name.removesuffix(".yaml").rpartition("/")
    wanted = [f"{group}={option}", *NEEDS.get(f"{group}/{option}", [])] if group else []
    primary = "train" if group else option
    folder = ["output_dir=run"] if primary == "train" else []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(config_name=primary, overrides=[*folder, *wanted, *overrides])


def keys_without_comment(lines: list[str], node: yaml.Node, path: str = "") -> Iterator[str]:
    """Yields the keys, at any depth, that have a comment neither behind them nor in the line above."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{path}{key.value}"
        if key.value in ("_target_", "defaults"):
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from keys_without_comment(lines, value, f"{name}.")
            continue
        line = key.start_mark.line
        if " #" not in lines[line] and not (line and lines[line - 1].lstrip().startswith("#")):
            yield name


@pytest.mark.parametrize("name", FILES)
def test_every_file_opens_with_a_comment_and_every_key_has_one(name: str) -> None:
    text = (CONFIGS / name).read_text()
    lines = text.splitlines()
    opening = next(line for line in lines if not line.startswith("# @package"))
    assert opening.startswith("# "), f"{name} does not say what it chooses"
    assert len(opening) > 20
    assert not list(keys_without_comment(lines, yaml.compose(text)))


def test_the_comment_check_finds_a_key_without_comment() -> None:
    text = "a: 1 # one\nb:\n  c: 2\n  # three\n  d: 3\n"
    assert list(keys_without_comment(text.splitlines(), yaml.compose(text))) == ["b.c"]


@pytest.mark.parametrize("name", FILES)
def test_every_file_composes_without_an_applications_other_files(name: str) -> None:
    config = composed(name)
    OmegaConf.resolve(config)
    loaded = ".load_from_checkpoint" if name == "predict.yaml" else ""
    assert config.data._target_ == f"ofdft_norm.OFDFTDataModule{loaded}"


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_instantiates(name: str, tmp_path: Path) -> None:
    config = composed(name)
    node = OmegaConf.select(
        config, "data" if name.startswith("experiment/") else str(Path(name).parent).replace("/", ".")
    )
    if "_target_" in node:
        hydra.utils.instantiate(node)
    else:  # loggers and callbacks: their folder is the run's
        for entry in node.values():
            folder = {key: str(tmp_path) for key in ("save_dir", "dirpath") if key in entry}
            hydra.utils.instantiate(entry, **folder)


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_an_argument_of_what_it_configures(name: str) -> None:
    for node in targets(OmegaConf.load(CONFIGS / name)):
        target = node["_target_"]
        callable_ = get_class(target) if target.rpartition(".")[2][0].isupper() else get_method(target)
        arguments = inspect.signature(callable_).parameters
        if any(argument.kind is inspect.Parameter.VAR_KEYWORD for argument in arguments.values()):
            continue
        groups = {path.name for path in (CONFIGS / name).parent.iterdir() if path.is_dir()}
        assert {str(key) for key in node} - {"_target_", "defaults"} <= set(arguments) - groups, target


# files whose purpose is another value than the class's default
MEANT = {
    ("data/reference/fixed.yaml", "unit"),
    ("data/reference/fixed.yaml", "values"),
    ("data/source/structures25.yaml", "dataset"),
    ("logger/tensorboard.yaml", "name"),
    ("logger/tensorboard.yaml", "version"),
    ("logger/tensorboard.yaml", "default_hp_metric"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_value_is_the_default_of_what_it_configures(name: str) -> None:
    for node in targets(OmegaConf.load(CONFIGS / name)):
        target = node["_target_"]
        if not target.startswith("ofdft_norm.") or not target.rpartition(".")[2][0].isupper():
            continue
        for key, parameter in inspect.signature(get_class(target)).parameters.items():
            if key not in node or OmegaConf.is_missing(node, key) or (name, key) in MEANT:
                continue
            if parameter.default is inspect.Parameter.empty:
                continue
            value = hydra.utils.instantiate(node[key]) if OmegaConf.is_config(node[key]) else node[key]
            default = [ofdft_norm.ProjectGradient()] if key == "pre_transforms" else parameter.default
            assert plain(value) == default or repr(list(value)) == repr(list(default)), (target, key)


def targets(node: Any) -> Iterator[DictConfig]:
    """Yields the nodes below, and itself, that have a ``_target_``."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield node
        for key in node:
            yield from targets(node._get_node(key))
    elif OmegaConf.is_list(node):
        for entry in node:
            yield from targets(entry)


def test_the_data_config_stands_on_its_own() -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(config_name="data/ofdft_norm")
    assert OmegaConf.to_container(config, resolve=True) == {"data": OmegaConf.to_container(composed("train").data)}


def test_every_numeric_setting_of_the_normalisation_is_a_key() -> None:
    keys = config_files()
    for key in ("rescaling.s_grad", "rescaling.s_coeff", "rescaling.epsilon", "energy_scale", "statistics.dir"):
        assert f"data.{key}" in keys
    assert config_dir() == CONFIGS


def test_ablation_sweeps_over_all_four_combinations() -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=["experiment=ablation", "output_dir=run"], return_hydra_config=True)
    assert config.hydra.mode.name == "MULTIRUN"
    params = dict(config.hydra.sweeper.params)
    assert params == {"data/reference": "none,atom_ref", "data/rescaling": "none,dimension_wise"}
    for reference in params["data/reference"].split(","):
        for rescaling in params["data/rescaling"].split(","):
            chosen = composed("train", f"data/reference={reference}", f"data/rescaling={rescaling}").data
            datamodule = hydra.utils.instantiate(chosen)
            assert (datamodule.settings.reference is None) == (reference == "none")
            assert (datamodule.settings.rescaling is None) == (rescaling == "none")
