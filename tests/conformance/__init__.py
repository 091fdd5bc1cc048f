"""What any backend must pass: the reference loop is the truth, cells and surrogates are discovered."""
