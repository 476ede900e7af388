"""Pre-transforms: what happens to a sample in float64, before statistics are taken and before it is normalised."""
