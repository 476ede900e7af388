"""Puts the package's config group ``data`` on the search path of every Hydra application: ``data=ofdft_norm``.

Configurations may also ask what their data are: ``${ofdft_norm.n_basis:data}``, see `ofdft_norm.config.resolvers`.

Every Hydra application imports this module at start-up, so it imports neither `ofdft_norm` nor anything heavy. It is
installed as the top-level namespace package `hydra_plugins`, which Hydra 1.3 scans; Hydra 1.4 finds the classes by the
entry points ``hydra.plugins``. There must be no ``__init__.py`` beside this file: it would hide other plug-ins.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from hydra._internal.core_plugins import file_config_source  # the class itself would be taken for a plug-in of ours
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

SCHEME = "ofdft-norm"
GROUP = "data"
OF_DATA = ("n_basis", "atomic_numbers", "irreps_per_atom")


class OFDFTNormConfigSource(file_config_source.FileConfigSource):
    """Reads the folder of config files, of which it shows the group ``data`` and what is below it.

    The other groups and the primary files belong to this package's own command lines: in another application they would
    be options that do not fit it.
    """

    @staticmethod
    def scheme() -> str:
        """Returns what paths begin with that this class reads."""
        return SCHEME

    def available(self) -> bool:
        """Returns whether the folder is there."""
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Returns whether a name, such as ``data/split``, is a group that is shown."""
        return _shown(config_path) and super().is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        """Returns whether a name, such as ``data/split/random``, is a config file that is shown."""
        return _shown(config_path) and super().is_config(config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Returns the names below a name that are shown."""
        names = super().list(config_path, results_filter)
        return [name for name in names if _shown(str(PurePosixPath(config_path, name)))]


def _shown(config_path: str) -> bool:
    return PurePosixPath(config_path).parts[:1] in ((), (GROUP,))


class OFDFTNormSearchPathPlugin(SearchPathPlugin):
    """Appends the folder of config files, after the application's own: where both have a file, theirs wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the folder; called by Hydra.

        Args:
            search_path: Hydra's search path, which is changed.
        """
        spec = find_spec("ofdft_norm")  # of a top-level package: found, not imported
        if spec is None or not spec.submodule_search_locations:
            return  # the package was removed and this file left behind: no reason to stop other applications
        package = Path(next(iter(spec.submodule_search_locations)))
        installed = package / "configs"  # a wheel has them here, a checkout beside the package
        configs = installed if installed.is_dir() else package.parent / "configs"
        search_path.append(provider="ofdft_norm", path=f"{SCHEME}://{configs}")


def register_resolvers() -> None:
    """Registers names that import the package when one of them is first used."""

    def of_data(name: str) -> Any:
        def resolve(*args: Any, _root_: Any) -> Any:
            return getattr(import_module("ofdft_norm.config.resolvers"), name)(*args, _root_=_root_)

        return resolve

    def error_suffix(unit: str) -> Any:
        return import_module("ofdft_norm.units").error_suffix(unit)

    for name, resolver in {**{name: of_data(name) for name in OF_DATA}, "error_suffix": error_suffix}.items():
        OmegaConf.register_new_resolver(f"ofdft_norm.{name}", resolver, replace=True)


register_resolvers()
