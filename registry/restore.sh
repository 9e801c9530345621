#!/usr/bin/env bash
# The registry of a backup, into an empty database and an empty bucket. Stop MLflow and the gate first.
#
#   DATABASE=postgresql://mlflow:...@localhost/mlflow BUCKET=s3://mlflow ENDPOINT=http://localhost:8333 \
#       ./restore.sh /backups/20261121T120000Z
#
# Afterwards `sanitize verify models:/released@approved` compares what came back with the digests of the release.
# Needs pg_restore, psql and aws.
set -euo pipefail
: "${DATABASE:?}" "${BUCKET:?}" "${ENDPOINT:?}"
source=${1:?the folder of a backup}

(cd "$source" && sha256sum --check --quiet SHA256SUMS)
tables=$(psql "$DATABASE" --tuples-only --no-align --command "select count(*) from information_schema.tables where table_schema = 'public'")
if [ "$tables" != 0 ]; then echo "error: the database has $tables tables; restore into an empty one." >&2; exit 2; fi
pg_restore --exit-on-error --no-owner --dbname="$DATABASE" "$source/mlflow.dump"
aws --endpoint-url "$ENDPOINT" s3 sync --only-show-errors "$source/objects" "$BUCKET"
if [ -f "$source/webhooks.db" ] && [ -n "${QUEUE:-}" ]; then
    rm -f "$QUEUE-wal" "$QUEUE-shm" # of the queue that was there: not of this one
    install -m 600 "$source/webhooks.db" "$QUEUE"
fi
