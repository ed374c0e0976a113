def enough_to_explore(config, updates):
    return updates >= 50
