"""IsotopeNet and ResidualNet as PyTorch modules, their layers, and what they see of a spectrum."""
