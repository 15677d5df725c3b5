"""From one form to another: quantized folders, calibration, Hugging Face folders, GGUF files."""
