"""Float models made binary without training: statistics of their activations, and the weights that fit these best."""
