"""One module for each package: `send` takes a chat body and returns the request that the package would send.

Drivers run in the peers' own environment, get skeletons, and open no connection.
"""
