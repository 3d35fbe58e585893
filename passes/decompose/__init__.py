"""Taking attention and recurrent layers apart."""
