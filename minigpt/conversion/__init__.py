"""From one form to another: quantized folders, calibration, Hugging Face folders, GGUF files.

convert.py      any source → a folder of int8, int4, bf16 or f32, one tensor at a time
calibrate.py    importance of each matrix's rows, measured on a text, for int4
saving.py       a folder's files: tensors, config.json, tokenizer
gguf_export.py  any source → a GGUF file
"""
