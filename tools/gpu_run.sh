#!/usr/bin/env bash
# Short GPU rentals: runs the most important missing cells of the queue until the time is up, then brings back what is small.
#
#   tools/gpu_run.sh                  full CIFAR-10 from data_a/, data_b/, data_c/ (parquet shards, in whichever folders they came)
#   TINY=1 tools/gpu_run.sh           the same queue at tiny size on any machine: the rehearsal
#
# The same command again goes on: stages and students are kept under $WORK, finished cells are read from the ledgers.
#   LIMIT   seconds this command may take (default 520: under a rental's ten minutes)
#   WORK    where runs are kept on the rented machine (default /tmp/edc_gpu)
#   DATA    folders that hold parquet shards (default: data_a data_b data_c)
#   OUT     what comes back: ledger lines, condensed images, label stores (default $WORK/out)
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=${WORK:-/tmp/edc_gpu}
OUT=${OUT:-$WORK/out}
mkdir -p "$WORK/data" "$OUT"
for folder in ${DATA:-data_a data_b data_c}; do
    # a folder that is sent again replaces itself, so the shards are kept outside of the checkout
    if compgen -G "$folder/*.parquet" > /dev/null; then cp -u "$folder"/*.parquet "$WORK/data/"; fi
done
exec env PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-python3}" tools/gpu_queue.py \
    --work "$WORK" --out "$OUT" --limit "${LIMIT:-520}" ${TINY:+--tiny}
