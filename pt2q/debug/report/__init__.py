"""All that is known of a quantized model's accuracy, as one page that needs nothing else."""
