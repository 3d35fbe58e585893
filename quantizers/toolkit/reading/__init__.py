"""What is read off a graph: roles of tensors, chains, masks, ranges, residuals, partitions."""
