def references_from_values(values, max_num_elements=118):
    raise NotImplementedError
