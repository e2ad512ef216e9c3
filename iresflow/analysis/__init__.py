"""What a trained flow does, measured: the numbers behind figures."""
