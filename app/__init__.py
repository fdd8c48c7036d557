"""The service: HTTP interfaces, registry, fine-tune jobs, console and the command line."""
