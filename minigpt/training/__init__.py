"""Training: from texts to a model, in the folder of a run that survives any interruption.

create.py      train() and create_run(): start a run in one call
config.py      hyperparameters and their defaults; presets.py: model shapes, each with its own
initial.py     the first weights; throughput.py: how many steps fit into a time
token_file.py  the ids of the texts on disk; batches.py: which of them a step reads
train.py       the loop: batch, loss, gradients, AdamW; schedule.py: the learning rate of a step;
               limits.py: when a call ends
run_folder.py  checkpoints; state_json.py: the part of them that is not a tensor
metrics.py     the losses on disk; loss_curve.py: the same as a plot
"""
