"""What a quantizer decided, for programs and for people."""
