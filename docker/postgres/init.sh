#!/bin/sh
# Run once by the image of PostgreSQL on an empty data folder: an account and databases for each client.
set -eu

psql --username "$POSTGRES_USER" --dbname postgres --no-psqlrc --quiet --set ON_ERROR_STOP=1 \
  --set ablation_password="$ABLATION_DB_PASSWORD" --set mlflow_password="$MLFLOW_DB_PASSWORD" <<'SQL'
CREATE ROLE ablation LOGIN PASSWORD :'ablation_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE ablation OWNER ablation;
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
REVOKE CONNECT ON DATABASE ablation, mlflow, mlflow_auth FROM PUBLIC;
SQL
