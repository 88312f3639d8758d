"""The probability that a prefix is read again, from its own record and from its cohorts."""
