"""A convolution on the processor's unit for matrices (AMX): its sums, both gradients, and what they take."""
