"""Functions that config files call: as `_target_`, and as resolvers such as ``n_basis: ${ofdft_norm.n_basis:data}``.

The Hydra plug-in registers the resolvers in every application; this module is imported when one of them is used.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ofdft_norm.errors import ConfigError


def in_order(**transforms: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Returns named transforms as a list: overrides can change named entries, but no entries of a list."""
    return list(transforms.values())


def nothing() -> None:
    """Returns None: the option ``none`` of a config group needs a file, and a file cannot be null."""


def read_basis(name: str, key: str = "data", *, root: DictConfig) -> Any:
    """Returns an attribute of the density basis of the data module at a key of the configuration, as plain data.

    `n_basis` is the number of basis functions of all elements together, `atomic_numbers` and `irreps_per_atom` are the
    elements and their shells, such as ``6x0e+3x1o+1x2e``. Raises ConfigError if there is no such data module or basis.
    """
    source = OmegaConf.select(root, f"{key}.source")
    basis = None if source is None else instantiate(source).basis()
    if basis is None:
        reason = "is not in the configuration" if source is None else "has no density basis"
        raise ConfigError(
            f"{key}.source {reason}: give the model its size and elements as numbers (config: data.source)"
        )
    return np.asarray(getattr(basis, name)).tolist()
