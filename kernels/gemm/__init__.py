"""Matrix products: packing, quantized operands, and the loop nest over register tiles."""
