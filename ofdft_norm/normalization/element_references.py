"""Linear element references: an energy linear in the composition ([OC22], as fairchem ships it)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.data import Data

from ofdft_norm.data.of_data import molecule_index, n_molecules
from ofdft_norm.errors import BatchError, ConfigError, NormalizationError, StatisticsError
from ofdft_norm.normalization.float64_module import Float64Module
from ofdft_norm.normalization.reference_files import read_reference_file

UnseenPolicy = Literal["error", "zero"]


class LinearReferences(Float64Module):
    """E_ref = sum over atoms of ref_Z: removes or adds a composition model of a target.

    Args:
        element_references: (max_num_elements + 1,) reference of each atomic number [hartree, or the target's unit];
            index 0 is unused, elements that were not seen are 0. None: all zero.
        max_num_elements: Largest atomic number.
        seen_elements: (max_num_elements + 1,) bool, which elements have a reference; by default those whose reference
            is not 0 (all, if `element_references` is None).
        unseen_elements: ``"error"`` refuses atoms of elements without a reference, ``"zero"`` gives them 0.
        atomic_numbers_field: Field of the batch that holds the atomic numbers; where it is missing, PyG's ``z`` is
            used.

    Raises:
        StatisticsError: If the references have another length or are not finite.
        ConfigError: If `unseen_elements` is unknown.
    """

    element_references: Tensor
    seen_elements: Tensor

    def __init__(
        self,
        element_references: Tensor | None = None,
        max_num_elements: int = 118,
        seen_elements: Tensor | None = None,
        unseen_elements: UnseenPolicy = "error",
        atomic_numbers_field: str = "atomic_numbers",
    ) -> None:
        super().__init__()
        if unseen_elements not in ("error", "zero"):
            raise ConfigError(
                f"unseen_elements = {unseen_elements!r}: expected 'error' or 'zero' "
                "(config: data.reference.unseen_elements)"
            )
        self.unseen_elements = unseen_elements
        self.atomic_numbers_field = atomic_numbers_field
        if element_references is None:
            self.register_float64("element_references", torch.zeros(max_num_elements + 1))
            seen = torch.ones(max_num_elements + 1, dtype=torch.bool)
        else:
            self.register_float64("element_references", element_references)
            seen = self.element_references != 0
        if self.element_references.shape != (max_num_elements + 1,):
            raise StatisticsError(
                f"element_references has shape {tuple(self.element_references.shape)}, expected "
                f"({max_num_elements + 1},): index 0 is unused, one entry for each element up to max_num_elements"
            )
        if not torch.isfinite(self.element_references).all():
            raise StatisticsError("element_references holds values that are not finite")
        self.register_buffer("seen_elements", seen if seen_elements is None else seen_elements.clone().bool())

    @property
    def max_num_elements(self) -> int:
        """Largest atomic number that has an entry."""
        return len(self.element_references) - 1

    def energy(self, batch: Data, coeffs: Tensor | None = None) -> Tensor:
        """Returns the reference energy of each molecule, (n_molecules,) float64; `coeffs` play no part.

        Raises:
            BatchError: If the batch has no atomic numbers.
            NormalizationError: If an atom's element has no reference, or is beyond `max_num_elements`.
        """
        numbers = batch.get(self.atomic_numbers_field)
        numbers = batch.get("z") if numbers is None else numbers
        if numbers is None:
            raise BatchError(
                f"element references need the field {self.atomic_numbers_field!r} (or 'z'), which the sample lacks "
                "(config: data.reference.atomic_numbers_field)"
            )
        numbers = numbers.long()
        self._check_elements(numbers)
        index = batch.get("batch")
        index = molecule_index(batch, "pos") if index is None else index
        return self.element_references.new_zeros(n_molecules(batch)).index_add(
            0, index, self.element_references[numbers]
        )

    def _check_elements(self, numbers: Tensor) -> None:
        outside = (numbers < 1) | (numbers > self.max_num_elements)
        if outside.any():
            raise NormalizationError(
                f"atomic numbers {sorted(set(numbers[outside].tolist()))} are outside 1 ... {self.max_num_elements} "
                "(config: data.reference.max_num_elements)"
            )
        unseen = ~self.seen_elements[numbers]
        if self.unseen_elements == "error" and unseen.any():
            elements = sorted(set(numbers[unseen].tolist()))
            have = self.seen_elements.nonzero().squeeze(1).tolist()
            raise NormalizationError(
                f"no reference energy for the elements {elements}: none of their atoms was seen in fitting (references "
                f"exist for {have}); fit on molecules with these elements, give their values "
                "(config: data.reference.values), or set data.reference.unseen_elements=zero"
            )

    def gradient(self, batch: Data) -> None:
        """The reference does not depend on the coefficients: there is no gradient to subtract."""

    def _apply_refs(self, target: Tensor, batch: Data, sign: int, reshaped: bool = True) -> Tensor:
        energy = self.energy(batch)
        if target.shape not in ((len(energy),), (len(energy), 1)):
            raise BatchError(
                f"the target has shape {tuple(target.shape)}, expected ({len(energy)},) or ({len(energy)}, 1)"
            )
        return target.to(torch.float64) + sign * energy.reshape(target.shape)

    def dereference(self, target: Tensor, batch: Data, reshaped: bool = True) -> Tensor:
        """Removes the references.

        Args:
            target: (n_molecules,) or (n_molecules, 1).
            batch: The molecules.
            reshaped: Kept for fairchem's callers; the target's own shape decides.

        Returns:
            The target less the references, in float64, in the target's shape.
        """
        return self._apply_refs(target, batch, -1, reshaped)

    def forward(self, target: Tensor, batch: Data, reshaped: bool = True) -> Tensor:
        """Adds the references; arguments and result as in `dereference`."""
        return self._apply_refs(target, batch, 1, reshaped)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        references = state_dict.get(prefix + "element_references")
        if references is not None and prefix + "seen_elements" not in state_dict:
            # fairchem's state dicts hold the references alone
            state_dict[prefix + "seen_elements"] = references.reshape(-1) != 0
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def create_element_references(
    file: str | Path | None = None, state_dict: Mapping[str, Any] | None = None
) -> LinearReferences:
    """Creates a reference module from a file or a state dict.

    Args:
        file: A ``.pt`` file with a state dict, or an ``.npz`` file with ``element_references`` (or, in legacy files,
            ``coeff``). Nothing is unpickled.
        state_dict: A state dict with ``element_references``.

    Returns:
        The references.

    Raises:
        ConfigError: If both or neither are given.
        StatisticsError: If the file cannot be read or holds no references.
    """
    if (file is None) == (state_dict is None):
        raise ConfigError("create_element_references needs either a file or a state_dict (config: data.reference.file)")
    if file is not None:
        return _from_state(read_reference_file(Path(file)), str(file))
    return _from_state(dict(state_dict or {}), "state_dict")


def _from_state(state: Mapping[str, Any], where: str) -> LinearReferences:
    if "element_references" not in state:
        raise StatisticsError(f"{where}: lacks 'element_references'; it has {sorted(state)}")
    references = torch.as_tensor(state["element_references"]).to(torch.float64).reshape(-1)
    seen = state.get("seen_elements")
    return LinearReferences(
        references, max_num_elements=len(references) - 1, seen_elements=None if seen is None else torch.as_tensor(seen)
    )
