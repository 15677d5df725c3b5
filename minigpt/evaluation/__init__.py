"""How well a model predicts: perplexity of texts, accuracy on task files."""
