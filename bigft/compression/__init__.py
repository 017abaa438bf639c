"""Smaller models after training: pruned, with fewer layers, quantized, or as GGUF."""
