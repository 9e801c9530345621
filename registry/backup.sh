#!/usr/bin/env bash
# A backup of the whole registry: database first, then objects, so that nothing the database names is missing.
# Objects are only ever added while MLflow runs, so a copy that is a little newer than the dump is complete.
#
#   DATABASE=postgresql://mlflow:...@localhost/mlflow BUCKET=s3://mlflow ENDPOINT=http://localhost:8333 \
#       QUEUE=/var/lib/sanitize/webhooks.db ./backup.sh /backups
#
# Needs pg_dump, the aws command with keys in its usual places, and sqlite3.
set -euo pipefail
umask 077
: "${DATABASE:?}" "${BUCKET:?}" "${ENDPOINT:?}"
target=${1:?where to}/$(date -u +%Y%m%dT%H%M%SZ)
draft=$target.partial
mkdir -p "$draft"
trap 'rm -rf "$draft"' EXIT

pg_dump --format=custom --no-owner --file="$draft/mlflow.dump" "$DATABASE"
aws --endpoint-url "$ENDPOINT" s3 sync --only-show-errors "$BUCKET" "$draft/objects"
if [ -n "${QUEUE:-}" ]; then sqlite3 "$QUEUE" ".backup '$draft/webhooks.db'"; fi
(cd "$draft" && find . -type f ! -name SHA256SUMS -print0 | LC_ALL=C sort -z | xargs -0 sha256sum >SHA256SUMS)
mv "$draft" "$target"
echo "$target"
