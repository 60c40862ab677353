"""The methods of distillation: one file each, with its loss functions and the objective a trainer runs."""
