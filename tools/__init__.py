"""Builders of data sets that no profile needs."""
