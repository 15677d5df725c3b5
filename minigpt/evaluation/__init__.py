"""How well a model predicts: perplexity of texts, accuracy on task files.

perplexity.py  perplexity, and the divergence of two models
task_files.py  LAMBADA, PIQA, ARC and other tasks as JSON lines
tasks.py       accuracy on these
files.py       files read and tokenized for
run.py         an evaluation of several, in one call
harness.py     a model for EleutherAI's lm-evaluation-harness
"""
