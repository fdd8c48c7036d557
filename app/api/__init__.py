"""HTTP: routes, and what every one of them has in common."""
