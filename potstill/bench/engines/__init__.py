"""What runs a model in a process of its own, and what it is asked there."""
