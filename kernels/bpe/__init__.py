"""Byte-pair encoding, compiled: pre-tokenization of UTF-8 bytes, and merges."""
