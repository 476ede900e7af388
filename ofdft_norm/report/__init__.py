"""Reports of runs and of fitted statistics, as HTML; the package proper does not import it."""
