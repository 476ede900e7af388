"""Batches whose fields are joined when they are asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from ofdft_norm import BasisInfo, OFData
from ofdft_norm.data.lazy_batch import lazy_batch, parts
from ofdft_norm.errors import BatchError

Make = Callable[..., OFData]


@pytest.fixture
def samples(basis_info: BasisInfo, make_sample: Make) -> list[OFData]:
    """Three samples with every kind of field that PyG joins in a way of its own."""
    rng = np.random.default_rng(0)
    samples = [make_sample(basis_info, rng, n, f"molecule {i}", i) for i, n in enumerate([[1, 8, 1], [6], [6, 8]])]
    for i, sample in enumerate(samples):
        sample.edge_index = torch.tensor([[0], [0]])  # counts atoms
        sample.index_of_atom = torch.arange(len(sample.pos))  # its name says that it counts atoms
        sample.scalar = torch.tensor(float(i))
        sample.number = 0.5 * i
        sample.count = i
        sample.flags = [True, False]
        sample.tags = {"a": torch.ones(i + 1)}
        sample.matrix = torch.full((i + 1, 2), float(i), dtype=torch.float32)
    return samples


def test_fields_are_those_of_pyg(samples: list[OFData], make_batch: Any, assert_same_fields: Any) -> None:
    lazy, joined = lazy_batch(samples), make_batch(samples)
    assert_same_fields(lazy, joined)
    for name in joined.keys():
        assert name in lazy
        assert lazy.get(name) is getattr(lazy, name) is lazy[name]
    assert lazy.get("absent") is None
    assert "absent" not in lazy
    with pytest.raises(KeyError):
        lazy["absent"]
    with pytest.raises(AttributeError):
        lazy.absent  # noqa: B018


def test_samples_of_anybody_s(samples: list[OFData], assert_same_fields: Any) -> None:
    others = [Data(z=s.atomic_numbers, pos=s.pos, energy=s.energy_label) for s in samples]
    assert_same_fields(lazy_batch(others), Batch.from_data_list(others))


def test_nothing_is_joined_that_is_not_asked_for(samples: list[OFData]) -> None:
    samples[1].gradient_label = samples[1].gradient_label[:, None]  # cannot be joined
    lazy = lazy_batch(samples)
    assert len(parts(lazy, "coeffs")) == 3
    assert torch.equal(torch.cat(parts(lazy, "coeffs")), lazy.coeffs)
    assert len(parts(lazy, "coeffs")) == 1  # joined meanwhile
    assert [part.data_ptr() for part in parts(lazy, "pos")] == [sample.pos.data_ptr() for sample in samples]
    with pytest.raises(RuntimeError):
        lazy["gradient_label"]
    assert parts(samples[0], "pos")[0] is samples[0].pos


def test_a_sample_without_a_field_of_the_others_is_named(samples: list[OFData]) -> None:
    del samples[1].gradient_label
    del samples[2].mol_id
    lazy = lazy_batch(samples)
    for read in (lambda: lazy.gradient_label, lambda: parts(lazy, "gradient_label")):
        with pytest.raises(BatchError, match=r"sample 1 .*'molecule 1'\) lacks the field 'gradient_label'.*pre_transf"):
            read()
    with pytest.raises(BatchError, match=r"sample 2 .*None\) lacks the field 'mol_id'"):
        lazy["mol_id"]


def test_it_can_be_changed_copied_and_moved_without_its_samples(samples: list[OFData]) -> None:
    lazy = lazy_batch(samples)
    shallow, deep = copy.copy(lazy), lazy.clone()
    lazy.coeffs = lazy.coeffs + 1
    lazy.extra = torch.zeros(3)
    del lazy["mol_id"]
    assert "extra" in lazy
    assert "mol_id" not in lazy
    for other in (shallow, deep, lazy_batch(samples)):
        assert "extra" not in other
        assert other.mol_id == ["molecule 0", "molecule 1", "molecule 2"]
        assert torch.equal(other.coeffs + 1, lazy.coeffs)
    moved = lazy_batch([sample.clone() for sample in samples]).to("meta")
    assert moved.coeffs.device.type == "meta"
    assert samples[0].coeffs.device.type == "cpu"
