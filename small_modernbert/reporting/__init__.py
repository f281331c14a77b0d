"""A run as one page: what its stages did, how it went, what came out."""
