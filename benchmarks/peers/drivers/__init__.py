"""One module for each package: `send` takes a chat body and returns the request that the package would send.

They run in the peers' own environment, are given skeletons, and open no connection.
"""
