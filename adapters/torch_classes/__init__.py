"""torch.optim's own classes, with its signatures and its checkpoints."""
