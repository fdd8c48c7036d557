"""Models, versions, what is live, and uploaded files: metadata in SQL, bytes in a store addressed by sha256."""
