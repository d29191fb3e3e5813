"""The workflow: Prefect flows over the stages of :mod:`smooth`."""
