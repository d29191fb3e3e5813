-- The first start makes the database `prefect` (POSTGRES_DB); MLflow's lies beside it.
CREATE DATABASE mlflow;
