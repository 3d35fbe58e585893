"""What quantizers do in `transform_for_annotation`: operators and weights as backends take them."""
