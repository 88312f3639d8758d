"""Savings as sums: the ledger, labels and reports."""
