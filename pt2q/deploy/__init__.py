"""What happens after convert: one module per target, each importing its runtime only when used."""
