"""What training minimises: an objective for each kind of model."""
