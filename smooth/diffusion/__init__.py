"""The mathematics of the project: torch only, no Ray, no files, no diffusers pipelines."""
