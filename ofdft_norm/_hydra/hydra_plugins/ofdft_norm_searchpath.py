"""Puts the package's config groups on the search path of every Hydra application: ``data=ofdft_norm``.

Every Hydra application imports this module at start-up, so it imports neither `ofdft_norm` nor anything heavy. It is
installed as the top-level namespace package `hydra_plugins`, which Hydra 1.3 scans; Hydra 1.4 finds the class by the
entry point ``hydra.plugins``. There must be no ``__init__.py`` beside this file: it would hide other plug-ins.
"""

from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


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
        search_path.append(provider="ofdft_norm", path=f"file://{configs}")
