"""From the tensors of a checkpoint to the weights of a model: names, shapes, checks, packing."""
