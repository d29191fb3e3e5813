"""Is the latent space smoother, and what did it cost? Metrics with intervals and protocol stamps."""
