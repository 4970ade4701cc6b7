"""Intervals of reported figures, and paired differences between runs."""
