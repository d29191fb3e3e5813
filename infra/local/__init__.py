"""The local cluster: Ray, MLflow, Prefect and a Prefect worker on loopback, started and stopped by pid."""
