"""What a trained flow does, measured: the numbers that figures show."""
