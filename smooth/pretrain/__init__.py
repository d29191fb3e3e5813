"""Train the built-in base model from scratch: Stable Diffusion in small, on captioned OpenMoji."""
