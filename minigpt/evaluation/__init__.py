"""How well a model predicts: perplexity of texts, accuracy on task files.

perplexity.py  perplexity, and the divergence of two models
task_files.py  LAMBADA, PIQA and ARC as JSON lines
tasks.py       accuracy on these
run.py         the same for files, in one call
"""
