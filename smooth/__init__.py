"""Smooth: make the latent space of a text-to-image diffusion model smooth, and measure it.

An implementation of Smooth Diffusion (arXiv 2312.04410) as a production system. Data walks in one
direction: ingest -> latents -> train -> evaluate -> register.
"""

__version__ = "0.1.0"
