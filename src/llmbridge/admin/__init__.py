"""What operators and applications do with whole streams."""
