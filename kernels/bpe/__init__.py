"""Byte-pair encoding, compiled: pre-tokens of UTF-8 bytes, and their merges."""
