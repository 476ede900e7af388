"""What a data set measures: weighers, streaming accumulators, the one-pass fit, and the store of its results."""
