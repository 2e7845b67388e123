"""Images: grids of vector-quantized codes."""
