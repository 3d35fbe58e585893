"""What `convert_pt2e` does: observers become operators, constants are stored quantized."""
