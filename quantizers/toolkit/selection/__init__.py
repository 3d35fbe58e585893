"""What the user said about which nodes are quantized, and how it applies to each."""
