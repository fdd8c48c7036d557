"""From a trained network to a bundle, and what can be proved of the bytes. The serving process takes `export.bundle` alone."""
