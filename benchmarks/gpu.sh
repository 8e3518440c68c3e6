#!/usr/bin/env bash
# Test and time everything that needs a GPU, in one call of under nine minutes.
#
# First come the GPU tests, then our training steps and ops at three sizes, then dense and compiled
# code. Needs torch, triton, einops, numpy and pytest; installs and downloads nothing. Writes
# gpu_*.txt, gpu_*.xml and speed_cuda.{csv,json,md} to $OUT.
#
#   OUT=/tmp/out benchmarks/gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:?set OUT to the folder for the results}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"

# An installed package maps the folder kernels/ to the name sae_kernels; here a link does.
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
within() { # within SECONDS COMMAND...: run a command for at most that long, and not past the end
  local seconds=$(($(left) < $1 ? $(left) : $1))
  ((seconds > 5)) && timeout --kill-after=5 "$seconds" "${@:2}"
}

# One XML file for each test file: pytest writes it at its end, so a file that runs out of time
# does not take the results of the others with it.
status=0
for name in kernels step terms; do
  within 90 "$PYTHON" -m pytest "tests/gpu/test_${name}_on_gpu.py" -q \
    --junitxml="$OUT/gpu_$name.xml" 2>&1 | tee "$OUT/gpu_$name.txt" || status=1
done
speed() {
  within "$1" "$PYTHON" -m benchmarks.step_and_op_speed --device cuda \
    --tested "$OUT"/gpu_{kernels,step,terms}.xml --out "$OUT" --name speed_cuda "${@:2}"
}
# Our code at every shape first, so that slow compilation of other code cannot use up the time.
speed 80 --step --rule topk --provider ours --seconds 1.5
speed 60 --step --rule batch_topk,jumprelu,gated,l1 --provider ours --seconds 1
speed 60 --op all --provider ours --seconds 0.3
speed 60 --step --rule topk --provider dense --seconds 1
speed 60 --op all --provider reference --seconds 0.3
speed 60 --step --rule topk --provider compiled --seconds 1
speed 60 --op all --provider compiled --seconds 0.3
"$PYTHON" -m benchmarks.plot "$OUT/speed_cuda.csv" || true
# The remaining time goes to small odd shapes, which Triton's interpreter already covers on CPU.
within 300 "$PYTHON" -m pytest tests/kernels -q -x -k "triton and not backend" 2>&1 |
  tee "$OUT/gpu_odd_shapes.txt"
exit "$status"
