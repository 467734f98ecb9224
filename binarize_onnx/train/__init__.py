"""Fine-tuning: a float model in, a trained binary one out. Its modules need the extra `train` (torch)."""
