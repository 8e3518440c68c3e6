#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under nine minutes: the GPU tests, then every op and
# the training steps at three sizes. Needs torch, triton, einops, numpy and pytest; nothing is
# installed and nothing is fetched. Writes gpu_*.txt, gpu_tests.xml and speed_cuda.{csv,json,md} to
# $OUT.
#
#   OUT=/tmp/out benchmarks/gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:?set OUT to the folder the results go to}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"

# The folder kernels/ is imported as sae_kernels, which an installed package maps; here a link does.
alias_folder=$(mktemp -d)
trap 'rm -rf "$alias_folder"' EXIT
ln -s "$PWD/kernels" "$alias_folder/sae_kernels"
export PYTHONPATH="$PWD:$alias_folder${PYTHONPATH:+:$PYTHONPATH}"

"$PYTHON" - <<'END' || exit 2
import sys, torch
if not torch.cuda.is_available():
    sys.exit("torch finds no CUDA device here")
END

started=$SECONDS
left() { echo $((520 - SECONDS + started)); }
within() {
  local seconds=$(($(left) < $1 ? $(left) : $1))
  ((seconds > 5)) && timeout --kill-after=5 "$seconds" "${@:2}"
}

within 200 "$PYTHON" -m pytest tests/gpu -q --junitxml="$OUT/gpu_tests.xml" 2>&1 |
  tee "$OUT/gpu_tests.txt"
tests=${PIPESTATUS[0]}
run() {
  within "$1" "$PYTHON" -m benchmarks.step_and_op_speed --device cuda --tested "$OUT/gpu_tests.xml" \
    --out "$OUT" --name speed_cuda "${@:2}"
}
run 130 --step --rule topk --seconds 1.5
run 60 --step --rule batch_topk,jumprelu,gated,l1 --provider ours --seconds 1
run 120 --op all --seconds 0.3
"$PYTHON" -m benchmarks.plot "$OUT/speed_cuda.csv" || true
# What time is left goes to the small odd shapes, which the interpreter has seen before.
within 300 "$PYTHON" -m pytest tests/kernels -q -x -k "triton and not backend" 2>&1 |
  tee "$OUT/gpu_odd_shapes.txt"
exit "$tests"
