"""What quantizing each tensor costs at the output, and what leaving it in float wins back."""
