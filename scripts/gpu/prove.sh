#!/usr/bin/env bash
# Test the GPU path, then measure it: tests, runs, bench, in this order, within nine minutes.
#   bash scripts/gpu/prove.sh [OUT]              on the GPU machine; each part writes its files to OUT as it goes
#   REHEARSE=1 bash scripts/gpu/prove.sh OUT     every step at toy sizes on a CPU, in Triton's interpreter: no figures
# README.md in this folder says what .gpu must contain and how long each part may take.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-${OUT:-results/bench/gpu}}
work=$(mktemp -d)  # files of runs: not in OUT, because a machine may return only a few files
trap 'rm -rf "$work"' EXIT
site=${SITE:-/tmp/evalkit-site}
python=${PYTHON:-python3}
mkdir -p "$out"
exec > >(tee "$out/log.txt") 2>&1
started=$SECONDS
failed=()

step() {  # step NAME LIMIT_S COMMAND...: run within a limit; a failure is noted and the next step still runs
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    echo "==== $name (at $((began - started)) s, $limit s at most)"
    timeout --signal=INT --kill-after=5 "$limit" "$@"
    local code=$?
    echo "---- $name: exit $code after $((SECONDS - began)) s"
    [ $code -eq 0 ] || failed+=("$name")
}

export PYTHONPATH="$PWD:$PWD/scripts:$site" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true
export OMP_WAIT_POLICY=PASSIVE  # six processes have more threads than there are cores, so none may spin
if [ -n "${REHEARSE:-}" ]; then
    device=cpu documents=1000 smoke=--smoke stretch=${STRETCH:-30}
else
    device=cuda documents=20000 smoke='' stretch=1
    export TRITON_INTERPRET=0  # tests set it to 1 if they find no GPU device file; figures must not come from the interpreter
fi
limit() { echo $(($1 * stretch)); }

nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv 2>/dev/null
step "packages" "$(limit 35)" bash -c "
    '$python' -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target '$site' .gpu/wheels/*.whl &&
    '$python' scripts/gpu/carry.py --unpack && { '$python' -W ignore -m compileall -q -j 0 '$site' >/dev/null || :; }"
# The metrics compile for most of a minute on first use: do so while the tests run.
timeout "$(limit 150)" "$python" scripts/gpu/runs.py --warm > "$work/warm.log" 2>&1 &
warming=$!
step "ceilings and paths" "$(limit 38)" "$python" scripts/gpu/ceilings.py --out "$out" $smoke
workers=()
if [ $device = cuda ] && "$python" -c 'import xdist' 2>/dev/null; then workers=(-n 6); fi
# Warnings of GPU paths go to the log; they must not fail a test.
step "a: tests" "$(limit 110)" "$python" -m pytest -q -m gpu tests/gpu -W default --durations=15 -p no:cacheprovider \
    "${workers[@]}"
wait "$warming" || cat "$work/warm.log"
step "b: runs" "$(limit 105)" "$python" scripts/gpu/runs.py --out "$out" --device $device --documents $documents \
    --work "$work" --limit-s "$(limit 85)"
# A section's budget starts after its imports, which take about ten seconds.
step "c: encoding" "$(limit 88)" "$python" scripts/gpu/encoding.py --out "$out" --budget-s "$(limit 74)" $smoke
step "c: search" "$(limit 82)" "$python" scripts/gpu/search.py --out "$out" --budget-s "$(limit 68)" $smoke
step "c: fused" "$(limit 72)" "$python" scripts/gpu/fused.py --out "$out" --budget-s "$(limit 58)" $smoke
step "summary" "$(limit 10)" "$python" scripts/gpu/summary.py "$out"
echo "==== ${#failed[@]} steps failed after $((SECONDS - started)) s: ${failed[*]:-none}"
exit $((${#failed[@]} > 0))
