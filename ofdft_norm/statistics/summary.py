def summary_table(statistics, basis_info, rescaling=None):
    return "\n".join(statistics.keys_recursive())
