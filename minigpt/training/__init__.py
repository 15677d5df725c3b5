"""Training: texts to token files, batches, the loop, and the folder of a run."""
