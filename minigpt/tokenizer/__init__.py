"""Text to ids and back: byte-level BPE, in Python and compiled."""
