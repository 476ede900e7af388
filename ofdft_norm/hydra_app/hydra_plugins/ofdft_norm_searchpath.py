"""Adds this package's config group ``data`` to the search path of every Hydra application: ``data=ofdft_norm``.

Every Hydra application imports this module when it starts, so it does not import `ofdft_norm` or slow modules. An
``__init__.py`` beside this file would hide other packages' plug-ins in the namespace `hydra_plugins`.
"""

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from hydra._internal.core_plugins import file_config_source  # Hydra would list the imported class as our plug-in
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

SCHEME = "ofdft-norm"


class OFDFTNormConfigSource(file_config_source.FileConfigSource):
    """Shows the group ``data`` of the folder of config files; the other groups fit this package's commands only."""

    @staticmethod
    def scheme() -> str:
        """Returns the prefix of search paths that this class reads."""
        return SCHEME

    def is_group(self, config_path: str) -> bool:
        """Returns whether a name, such as ``data/split``, is a visible group."""
        return _is_visible(config_path) and super().is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        """Returns whether a name, such as ``data/split/random``, is a visible config file."""
        return _is_visible(config_path) and super().is_config(config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Returns the visible names below a name."""
        names = super().list(config_path, results_filter)
        return [name for name in names if _is_visible(str(PurePosixPath(config_path, name)))]


def _is_visible(config_path: str) -> bool:
    return PurePosixPath(config_path).parts[:1] in ((), ("data",))


class OFDFTNormSearchPathPlugin(SearchPathPlugin):
    """Appends the folder of config files to the search path: the application's own files take precedence."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the folder; Hydra calls this."""
        spec = find_spec("ofdft_norm")  # does not import the package
        if spec is None or not spec.submodule_search_locations:
            return  # the package was removed, but this file was not
        package = Path(next(iter(spec.submodule_search_locations)))
        installed = package / "configs"  # a wheel has the files here, a checkout beside the package
        configs = installed if installed.is_dir() else package.parent / "configs"
        search_path.append(provider="ofdft_norm", path=f"{SCHEME}://{configs}")


def _read_basis(name: str, *args: Any, _root_: Any) -> Any:
    return import_module("ofdft_norm.hydra_app.config_functions").read_basis(name, *args, root=_root_)


def _find_error_suffix(unit: str) -> Any:
    return import_module("ofdft_norm.units").find_unit(unit).suffix


for _name in ("n_basis", "atomic_numbers", "irreps_per_atom"):
    OmegaConf.register_new_resolver(f"ofdft_norm.{_name}", partial(_read_basis, _name), replace=True)
OmegaConf.register_new_resolver("ofdft_norm.error_suffix", _find_error_suffix, replace=True)
