"""Matrix products: packing and quantizing operands, and the loop nest over register tiles."""
