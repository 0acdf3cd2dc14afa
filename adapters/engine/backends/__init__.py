"""What runs one stage: lists of tensors, compiled kernels, or a link called as it is."""
