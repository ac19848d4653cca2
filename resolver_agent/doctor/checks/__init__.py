"""The rules of doctor: facts in, findings out."""
