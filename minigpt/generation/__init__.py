"""From logits to text: sample a token, schedule sequences, decode a stream."""
