"""Statistics of a data set: weighers, the fit in two passes, the store of its results, and their cache."""
