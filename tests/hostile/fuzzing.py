"""What mutated files and configurations have in common."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

few_or_many = pytest.mark.parametrize(
    "setting",
    [
        settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow]),
        pytest.param(settings(max_examples=2000, suppress_health_check=[HealthCheck.too_slow]), marks=pytest.mark.slow),
    ],
    ids=["few", "many"],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.sampled_from([10**12, 1e300, -1.5]) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
