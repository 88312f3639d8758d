"""Commands for those who develop and release the project; no part of the package."""
