"""Counts of images, rows, scores, confidence intervals, tables and figures of evaluations."""
