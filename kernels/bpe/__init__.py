"""Byte-level byte-pair encoding, compiled: from UTF-8 bytes to ids.

encode.py       texts: pre-tokens, looked up or merged
pretokenize.py  where pre-tokens end, 64 bytes at a time
memo.py         the pre-tokens that were merged, and their ids
merge.py        the merges of one pre-token
"""
