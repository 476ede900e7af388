def resolve_energy_scale(spec, statistics, weigher_key, reference_name, per_atom=False):
    return float(spec)
