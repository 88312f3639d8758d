"""Providers and models as data: rows with source and date, and the functions that look them up."""
