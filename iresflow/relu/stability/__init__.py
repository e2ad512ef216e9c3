"""What a network throws away nearly: the singular values of its linearisations."""
