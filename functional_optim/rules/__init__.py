"""One algorithm per file, each with its paper's pseudocode on top."""
