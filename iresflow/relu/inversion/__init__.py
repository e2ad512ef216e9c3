"""The code of a generative network from its output, by linear programs."""
