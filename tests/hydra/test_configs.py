"""Every config file composes and instantiates, and sets the defaults of its class."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.utils import get_class, get_method
from lightning.pytorch import callbacks
from omegaconf import DictConfig, OmegaConf

from ofdft_norm.settings import to_builtin
from ofdft_norm.transforms import make_default_transforms
from tests.hydra.composing import composed as composed_by_name

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
if not hasattr(callbacks, "EMAWeightAveraging"):  # Lightning before 2.6
    FILES.remove("callbacks/weight_averaging.yaml")
# overrides that an option needs
NEEDS = {
    "data/source/label_files": ["data.source.paths=labels", "data.source.basis_info=basis_info.json"],
    "data/source/ase": ["data.source.paths=data.xyz", "data/reference=linear", "data/rescaling=none"],
    "data/source/packed": ["data.source.paths=packed"],
    "data/source/structures25": ["data.source.root=."],
    "data/source/samples": ["data.source.path=samples.npz", "data.source.basis_info=basis_info.json"],
    "data/source/datamodule": ["data.source.datamodule={_target_: lightning.LightningDataModule}"],
    "logger/wandb": ["logger.wandb.offline=true"],
    "data/split/file": ["data.split.file=split.yaml"],
    "data/reference/fixed": ["data.reference.file=references.npz", "data.reference.values=null"],
    "trainer/gpu": ["trainer.accelerator=cpu"],
}
# keys with another value than the class's default, on purpose
OTHER_VALUES = {
    ("data/reference/fixed.yaml", "unit"),
    ("data/reference/fixed.yaml", "values"),
    ("data/reference/isolated_atoms.yaml", "isolated_atoms"),
    ("data/source/structures25.yaml", "dataset"),
}


def composed(name: str, *overrides: str) -> DictConfig:
    """Composes a run with one option."""
    group, _, option = name.removesuffix(".yaml").rpartition("/")
    wanted = [f"{group}={option}", *NEEDS.get(f"{group}/{option}", [])] if group else []
    primary = "train" if group else option
    folder = ["output_dir=run"] if primary == "train" else []
    return composed_by_name(primary, *folder, *wanted, *overrides)


def targets(node: Any) -> Iterator[DictConfig]:
    """Yields the nodes below, and itself, that have a ``_target_``."""
    if isinstance(node, DictConfig):
        if node.get("_target_") is not None:
            yield node
        for key in node:
            yield from targets(node._get_node(key))
    elif OmegaConf.is_list(node):
        for entry in node:
            yield from targets(entry)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's database
@pytest.mark.parametrize("name", FILES)
def test_file_composes_and_its_node_instantiates(name, tmp_path):
    config = composed(name, f"++output_dir={tmp_path}")
    OmegaConf.resolve(config)
    assert config.data._target_.startswith("ofdft_norm.OFDFTDataModule")
    if "/" not in name or name.startswith("hydra/"):
        return
    key = "data" if name.startswith("experiment/") else str(Path(name).parent).replace("/", ".")
    node = OmegaConf.select(config, key)
    if "_target_" in node:
        hydra.utils.instantiate(node)
        return
    for entry in node.values():  # loggers and callbacks, which write into the run's folder
        if "Wandb" in entry._target_ or "MLFlow" in entry._target_:
            pytest.importorskip(name.removesuffix(".yaml").rpartition("/")[2])
        folder = {key: str(tmp_path) for key in ("save_dir", "dirpath") if key in entry}
        hydra.utils.instantiate(entry, **folder)


@pytest.mark.parametrize("name", FILES)
def test_keys_are_arguments_and_values_are_defaults(name):
    for node in targets(OmegaConf.load(CONFIGS / name)):
        target = node["_target_"]
        callable_ = get_class(target) if target.rpartition(".")[2][0].isupper() else get_method(target)
        arguments = inspect.signature(callable_).parameters
        if any(argument.kind is inspect.Parameter.VAR_KEYWORD for argument in arguments.values()):
            continue
        groups = {path.name for path in (CONFIGS / name).parent.iterdir() if path.is_dir()}
        assert {str(key) for key in node} - {"_target_", "defaults"} <= set(arguments) - groups, target
        if not target.startswith("ofdft_norm."):
            continue
        for key, parameter in arguments.items():
            if key not in node or OmegaConf.is_missing(node, key) or (name, key) in OTHER_VALUES:
                continue
            value = hydra.utils.instantiate(node[key]) if OmegaConf.is_config(node[key]) else node[key]
            expected = parameter.default
            same = expected is parameter.empty or to_builtin(value) == expected
            assert same or repr(list(value)) == repr(list(expected)), (target, key)


def test_defaults_of_the_data_config_are_those_of_the_data_module():
    assert composed_by_name("data/ofdft_norm").data == composed("train").data
    distance = "data.post_transforms=[{_target_: torch_geometric.transforms.Distance}]"
    datamodule, other = (hydra.utils.instantiate(composed("train", *own).data) for own in ((), (distance,)))
    assert repr(datamodule.pre_transforms) == repr(make_default_transforms())
    assert datamodule.post_transforms == []
    assert [type(transform).__name__ for transform in other.post_transforms] == ["Distance"]
