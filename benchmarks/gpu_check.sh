#!/usr/bin/env bash
# Runs every GPU check in one go, leaves logs and the record under $OUT: tests/gpu, then whole models, then conformance.
set -u
out=${OUT:-.}
export PYTHONUNBUFFERED=1 TACTICIAN_RECORD=$out/record.json
cp tests/gpu/record.json "$out/record.json" 2>/dev/null
timeout "${TESTS_SECONDS:-240}" python3 -m pytest tests/gpu -q -n "${WORKERS:-10}" -p no:cacheprovider --no-header -W ignore \
    --timeout 120 >"$out/tests.log" 2>&1
PYTHONPATH=tests python3 -m gpu.tally "$out/record.json"  # where the time limit came first
grep -E "^(FAILED|ERROR)" "$out/tests.log" | cut -c1-260 | head -40
tail -n 1 "$out/tests.log"
for part in "$@"; do
    timeout 200 python3 -W ignore benchmarks/$part >"$out/$(basename "${part%% *}" .py).log" 2>&1
    tail -n 8 "$out/$(basename "${part%% *}" .py).log" | cut -c1-400
done
