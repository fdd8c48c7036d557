"""Fine-tune jobs: what may be asked for, which state follows which, and who runs them."""
