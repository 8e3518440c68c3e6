"""Speed and memory of training steps and single ops: `python -m benchmarks.step_and_op_speed
--step`, `--op
encode_topk,decode`.

Each call is timed in turn with the bare product of the encoder, `torch.mm`, in the same process,
so that a multiple of it means the same on a noisy machine. Memory is measured in another process,
on CPU. An op whose tests are red gets no figure. Results are added to `<out>/<name>.csv`; the
table and the JSON beside it are written again. What each column means:
`benchmarks/speed_tables.py`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import torch

from benchmarks import ops, steps
from benchmarks import results_io as record
from benchmarks import speed_tables as speed
from benchmarks import subprocess_worker as worker
from benchmarks.steps import RULES, Shape
from benchmarks.timing import (
    Limits,
    PeakMemory,
    Times,
    best_ms,
    interleaved,
    limits,
    products,
)
from sae.errors import UserError

SHAPES = {
    "cpu": ("288,4608,32,2048", "512,8192,32,4096", "768,24576,32,2048"),
    "cuda": ("768,24576,32,8192", "2304,65536,64,8192", "4096,131072,64,8192"),
}
GPU_TESTS = ("test_kernels_on_gpu", "test_step_on_gpu")
STEP_TESTS = ("tests/kernels/test_step.py", "tests/kernels/test_row_grads.py", "tests/training")


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_and_op_speed", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", action="store_true", help="whole training steps")
    what.add_argument("--op", help=f"by comma, or all: {', '.join([*ops.OPS, 'update'])}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="cpu: float32; cuda: bfloat16"
    )
    parser.add_argument(
        "--shape", action="append", metavar="D_IN,D_SAE,K,BATCH", help="may be repeated"
    )
    parser.add_argument("--rule", default=",".join(RULES), help="sparsity rules of steps, by comma")
    parser.add_argument("--provider", help="only those whose name contains this")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, for each call")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=record.REPO / "benchmarks" / "results")
    parser.add_argument(
        "--tested", type=Path, help="JUnit XML of the tests, run beforehand; needed with cuda"
    )
    parser.add_argument("--name", help="of the result files; speed_<device>_<date> if left out")
    args = parser.parse_args(argv)
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    args.shape = [_shape(text) for text in args.shape or SHAPES[args.device]]
    args.name = args.name or f"speed_{args.device}_{record.today()}"
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if args.device == "cuda" and (args.tested is None or not args.tested.is_file()):
        raise UserError("--device cuda needs --tested FILE; benchmarks/gpu.sh makes it")
    for rule in args.rule.split(","):
        if rule not in RULES:
            raise UserError(f"--rule {rule} is not known; choose among {', '.join(RULES)}")
    return args


def _shape(text: str) -> Shape:
    try:
        return Shape.parse(text)
    except (TypeError, ValueError):
        raise UserError(
            f"--shape {text}; give d_in,d_sae,k,batch, such as 288,4608,32,2048"
        ) from None


def main(argv: list[str]) -> None:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    rows = step_rows(args) if args.step else op_rows(args)
    # With --tested it is benchmarks/gpu.sh that calls, and that is what makes the rows again.
    command = "OUT=folder benchmarks/gpu.sh"
    if args.tested is None:
        command = record.command("benchmarks.step_and_op_speed", argv)
    done: list[speed.Row] = []
    for values in rows:
        done.append(_row(args, command, values))
        file = speed.write(args.out, args.name, done)
        sys.stdout.write("\n".join(speed.table(done[-1:])[-1:]) + "\n")
        sys.stdout.flush()
    if done:
        sys.stdout.write(f"{file.with_suffix('.md')}\n")


def _row(args: argparse.Namespace, command: str, values: dict) -> speed.Row:
    shape: Shape = values.pop("shape")
    times: Times = values.pop("times")
    product, best_product = values.pop("product"), values.pop("best_product")
    best: Limits | None = values.pop("limits")
    flops, bytes_ = values.pop("cost")
    return speed.Row(
        dtype=args.dtype,
        batch=shape.batch,
        d_in=shape.d_in,
        d_sae=shape.d_sae,
        k=shape.k,
        ms_p50=times.p50,
        ms_p20=times.p20,
        ms_p80=times.p80,
        product_ms=product,
        times_product=times.p50 / product,
        times_best=times.p50 / best_product,
        roofline=best.floor_ms(flops, bytes_) / times.p50 if best and flops else "",
        gbps=bytes_ / times.p50 / 1e6 if flops else "",
        tflops=flops / times.p50 / 1e9 if flops else "",
        device=torch.cuda.get_device_name() if args.device == "cuda" else record.cpu(),
        threads=args.threads,
        torch=torch.__version__,
        triton=_version("triton"),
        commit=record.commit(),
        date=record.today(),
        command=command,
        **values,
    )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def red(args: argparse.Namespace, op: str, tests: tuple[str, ...]) -> str:
    """What is red of the tests that `op` depends on; empty when all pass.

    On CPU they are run here. On a GPU `--tested` names the record of one run of all of them, where
    a step depends on every test and an op on those of its own files.
    """
    if args.tested is None:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", *tests, "-m", "not slow"],
            cwd=record.REPO,
            capture_output=True,
            text=True,
        )
        return done.stdout[-2000:] if done.returncode else ""
    cases = list(ElementTree.parse(args.tested).iter("testcase"))
    files = [Path(test).stem for test in tests]
    mine = [
        case
        for case in cases
        if op == "step" or case.get("classname", "").rsplit(".", 1)[-1] in (*files, *GPU_TESTS)
    ]
    bad = [
        c.get("name", "")
        for c in mine
        if c.find("failure") is not None or c.find("error") is not None
    ]
    if not mine:
        return f"{args.tested} has no test of it"
    return ", ".join(bad)


def step_rows(args: argparse.Namespace):
    if bad := red(args, "step", STEP_TESTS):
        raise UserError(f"no speed of a step is printed, for its tests are red: {bad}")
    for shape in args.shape:
        for rule in args.rule.split(","):
            for provider in steps.providers(rule, args.device):
                if args.provider and args.provider not in provider:
                    continue
                measured = _step(args, provider, rule, shape)
                if measured is not None:
                    yield {
                        "op": "step",
                        "provider": provider,
                        "mode": rule,
                        "shape": shape,
                        **measured,
                    }


def step_cost(s: Shape, size: int) -> tuple[float, float]:
    """The encoder's product; fp32 p, m and v of both matrices read and written; four gathers."""
    rows = min(s.d_sae, s.batch * s.k)
    moved = 2 * 24.0 * s.d_sae * s.d_in + size * (s.d_sae + 2 * rows + 6 * s.batch) * s.d_in
    return 2.0 * s.batch * s.d_sae * s.d_in, moved


def _step(args: argparse.Namespace, provider: str, rule: str, shape: Shape) -> dict | None:
    job = {
        "provider": provider,
        "rule": rule,
        "shape": list(vars(shape).values()),
        "device": args.device,
        "dtype": args.dtype,
        "threads": args.threads,
        "seconds": args.seconds,
    }
    try:
        time = _job({**job, "what": "time"}, args.device)
        memory = _job({**job, "what": "memory"}, args.device)
    except RuntimeError as error:
        sys.stderr.write(f"{provider}, {rule}, {shape}: no figure: {error}\n")
        return None
    best = Limits(time["flops_rate"], time["bytes_rate"])
    flops, bytes_ = step_cost(shape, 4 if args.dtype == "float32" else 2)
    times = Times(**time["step"])
    return {
        "times": times,
        "product": time["product"],
        "best_product": time["best_product"],
        "limits": Limits(best.flops, best.bytes),
        "cost": (flops, bytes_),
        "peak_mib": memory["working"],
        "import_mib": memory["above_import"] if args.device == "cpu" else "",
        "max_err": "",
    }


def _job(job: dict, device: str) -> dict:
    if device == "cuda":
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        return worker.measure(job)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.subprocess_worker", json.dumps(job)],
        cwd=record.REPO,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "died")
    return json.loads(done.stdout.strip().splitlines()[-1])


def op_rows(args: argparse.Namespace):
    names = [*ops.OPS, "update"] if args.op == "all" else args.op.split(",")
    for name in names:
        if name != "update" and name not in ops.OPS:
            raise UserError(
                f"--op {name} is not known; choose among {', '.join([*ops.OPS, 'update'])}"
            )
    for name in names:
        files = ops.Update.tests if name == "update" else ops.OPS[name].tests
        if bad := red(args, name, tuple(f"tests/kernels/{file}" for file in files)):
            sys.stderr.write(f"{name}: no speed is printed, for its tests are red: {bad}\n")
            continue
        for shape in args.shape:
            yield from (_update(args, shape) if name == "update" else _op(args, name, shape))


def _op(args: argparse.Namespace, name: str, shape: Shape):
    op, dtype = ops.OPS[name], getattr(torch, args.dtype)
    inputs = ops.Inputs.make(shape, args.device, dtype)
    flops, bytes_ = op.cost(shape, inputs.x.element_size())
    best = limits(args.device, dtype)
    for mode in ("forward", "backward"):
        for provider in ("ours", "reference", "compiled"):
            if args.provider and args.provider not in provider:
                continue
            torch._dynamo.reset()
            try:
                call = ops.provider(provider, op, inputs, backward=mode == "backward")
                call()
            except Exception as error:  # a compiler that is missing, memory that is not there
                sys.stderr.write(f"{name}, {provider}, {shape}: no figure: {error!r:.300}\n")
                continue
            memory = PeakMemory(args.device)
            call()
            peak = memory.read()
            calls = {**products(inputs.x, inputs.W_enc.t()), "call": call}
            times = interleaved(calls, device=args.device, seconds=args.seconds)
            forward = mode == "forward"
            yield {
                "op": name,
                "provider": provider,
                "mode": mode,
                "shape": shape,
                "times": times["call"],
                "product": times["product"].p50,
                "best_product": best_ms(times),
                "limits": best,
                "cost": (flops, bytes_) if forward else (0, 0),
                "peak_mib": peak if args.device == "cuda" else "",
                "import_mib": "",
                "max_err": ops.max_err(op, shape, args.device, dtype)
                if forward and provider == "ours"
                else "",
            }


def _update(args: argparse.Namespace, shape: Shape):
    dtype = getattr(torch, args.dtype)
    inputs = ops.Inputs.make(shape, args.device, dtype)
    best = limits(args.device, dtype)
    for provider in ("ours", "plain"):
        if args.provider and args.provider not in provider:
            continue
        update = ops.Update(inputs)
        call = getattr(update, provider)
        call()
        memory = PeakMemory(args.device)
        call()
        peak = memory.read()
        calls = {**products(inputs.x, inputs.W_enc.t()), "call": call}
        times = interleaved(calls, device=args.device, seconds=args.seconds)
        yield {
            "op": "update",
            "provider": provider,
            "mode": "forward",
            "shape": shape,
            "times": times["call"],
            "product": times["product"].p50,
            "best_product": best_ms(times),
            "limits": best,
            "cost": ops.Update.cost(shape),
            "peak_mib": peak if args.device == "cuda" else "",
            "import_mib": "",
            "max_err": "",
        }


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
