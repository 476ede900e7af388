"""How the fields of a sample change when the density basis changes: declared here, once, for all that transform them.

A change of basis is one matrix T for each molecule. Vectors, the coefficients of a density, become T p; dual vectors,
derivatives with respect to coefficients and integrals of basis functions, become T^-T g, so that g.p stays what it is;
scalars stay as they are. Rescaling is the diagonal case T = lambda, with an origin: p' = lambda (p - pbar).
"""

from __future__ import annotations

from typing import Literal

Transformation = Literal["scalar", "vector", "dual vector"]

# Fields that are not named here belong to no basis and are never transformed.
FIELDS: dict[str, Transformation] = {
    "coeffs": "vector",
    "ground_state_coeffs": "vector",
    "gradient_label": "dual vector",
    "dual_basis_integrals": "dual vector",
    "energy_label": "scalar",
}

VECTORS = tuple(name for name, transformation in FIELDS.items() if transformation == "vector")
DUAL_VECTORS = tuple(name for name, transformation in FIELDS.items() if transformation == "dual vector")
# Fields with one entry for each basis function.
PER_FUNCTION = (*VECTORS, *DUAL_VECTORS)
