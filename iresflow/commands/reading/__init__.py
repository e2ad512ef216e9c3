"""From words and files to options: parsing, what overrides what, configurations of runs."""
