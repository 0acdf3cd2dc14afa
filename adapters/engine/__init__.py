"""What runs a step: stages of a chain, planned once and run by a backend."""
