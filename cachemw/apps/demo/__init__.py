"""`cachemw demo`: three policies on the same conversations."""
