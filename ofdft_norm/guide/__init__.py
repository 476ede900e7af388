"""A guide beyond the README's first ten minutes: tutorials, what normalisation did to your data, errors, units.

- `ofdft_norm.guide.interatomic_data`: energies and forces of your own, normalised and trained on
- `ofdft_norm.guide.density_labels`: labels of densities of your own, from geometries to predictions
- `ofdft_norm.guide.statistics`: references and statistics, what is fitted, kept and printed
- `ofdft_norm.guide.what_normalisation_did`: every row of the tables, every figure
- `ofdft_norm.guide.troubleshooting`: the ten errors most met, and what to do
- `ofdft_norm.guide.units`: what is in which unit
- `ofdft_norm.guide.ablation`: what normalisation buys, on the embedded labels and on yours
- `ofdft_norm.guide.coordinates`: from raw coordinates to the network's, and back; density optimisation
- `ofdft_norm.guide.large_scale`: packed labels, sweeps, clusters, STRUCTURES25's data sets
- `ofdft_norm.guide.other_packages`: coming from STRUCTURES25, fairchem, MACE, schnetpack or nequip
"""
