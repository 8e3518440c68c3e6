#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under nine minutes: the GPU tests, then every op and
# the training steps at three sizes. Needs torch, triton, einops, numpy and pytest; nothing is
# installed and nothing is fetched. Writes gpu_tests.{txt,xml} and speed_cuda.{csv,json,md} to $OUT.
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
within() { timeout --kill-after=5 "$(($(left) < $1 ? $(left) : $1))" "${@:2}"; }

within 240 "$PYTHON" -m pytest tests/gpu tests/kernels -q -k "gpu or triton and not backend" \
  --junitxml="$OUT/gpu_tests.xml" 2>&1 | tee "$OUT/gpu_tests.txt"
tests=${PIPESTATUS[0]}
run() {
  within "$1" "$PYTHON" -m benchmarks.run --device cuda --tested "$OUT/gpu_tests.xml" \
    --out "$OUT" --name speed_cuda "${@:2}"
}
run 150 --step --rule topk --seconds 1.5
run 60 --step --rule batch_topk,jumprelu,gated,l1 --provider ours --seconds 1
run 150 --op all --seconds 0.4
"$PYTHON" -m benchmarks.plot "$OUT/speed_cuda.csv" || true
exit "$tests"
