"""The checks of doctor: facts in, findings out."""
