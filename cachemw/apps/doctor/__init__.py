"""`cachemw doctor`: a check of the store."""
