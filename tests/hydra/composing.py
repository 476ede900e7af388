"""Composes configurations for tests."""

from typing import Any

from hydra import compose, initialize_config_dir

from ofdft_norm.hydra_app.readable_errors import find_config_dir


def composed(name: str, *overrides: str) -> Any:
    """Returns the configuration of a config file of this package."""
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        return compose(name, [*overrides])
