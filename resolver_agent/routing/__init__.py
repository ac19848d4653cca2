"""Decides where each name leads: values in, values out."""
