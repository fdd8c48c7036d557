"""One module a revision, in a row. A released one is never changed."""
