"""Measure: processes in turns, a journal of every sample, and what a report holds of it."""
