"""Functions that config files call: as `_target_`, and as resolvers such as ``n_basis: ${ofdft_norm.n_basis:data}``.

The Hydra plug-in registers the resolvers in every application; this module is imported when one of them is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ofdft_norm.data.basis import BasisInfo
from ofdft_norm.errors import ConfigError


def in_order(**transforms: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Returns named transforms as a list: overrides can change named entries, but no entries of a list.

    Args:
        **transforms: Transforms by name, in the order in which they are applied.
    """
    return list(transforms.values())


def nothing() -> None:
    """Returns None: the option ``none`` of a config group needs a file, and a file cannot be null."""


def n_basis(key: str = "data", *, _root_: DictConfig) -> int:
    """Returns the number of basis functions of all elements together.

    Args:
        key: Key of the data module in the configuration.
        _root_: The configuration, which OmegaConf passes.

    Raises:
        ConfigError: If there is no data module at that key, or its data have no density basis.
    """
    return _read_basis(key, _root_).n_basis


def atomic_numbers(key: str = "data", *, _root_: DictConfig) -> list[int]:
    """Returns the elements of the density basis; arguments as `n_basis`."""
    return [int(number) for number in _read_basis(key, _root_).atomic_numbers]


def irreps_per_atom(key: str = "data", *, _root_: DictConfig) -> list[str]:
    """Returns the shells of each element, such as ``6x0e+3x1o+1x2e``; arguments as `n_basis`."""
    return [str(irreps) for irreps in _read_basis(key, _root_).irreps_per_atom]


def _read_basis(key: str, root: DictConfig) -> BasisInfo:
    source = OmegaConf.select(root, f"{key}.source")
    basis: BasisInfo | None = None if source is None else instantiate(source).basis()
    if basis is None:
        reason = "is not in the configuration" if source is None else "has no density basis"
        raise ConfigError(
            f"{key}.source {reason}: give the model its size and elements as numbers (config: data.source)"
        )
    return basis
