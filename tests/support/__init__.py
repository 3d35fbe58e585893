"""What tests share: networks, quantizers, the laws of every graph, references for values."""
