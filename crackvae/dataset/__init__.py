"""Where images lie and what each is used for: sources, manifest, twins, splits."""
