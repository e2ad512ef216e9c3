"""What a certificate says of each block, of the whole, and as a table; whose weights it is of."""
