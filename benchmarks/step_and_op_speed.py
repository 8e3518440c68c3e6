"""Measure speed and memory of training steps and single ops.

    python -m benchmarks.step_and_op_speed --step
    python -m benchmarks.step_and_op_speed --op encode_topk,decode

Each call is timed in turn with the bare product of the encoder, `torch.mm`, in the same process,
because the ratio of the two is stable on a busy machine. On CPU, memory is measured in another
process. An op is measured only if its tests pass. Results are added to `<out>/<name>.csv`, and the
table and the JSON next to it are rewritten. `benchmarks/speed_tables.py` explains the columns.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks import ops, results_io, speed_tables, steps
from benchmarks import subprocess_worker as worker
from benchmarks.command import run_command
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
GPU_TESTS = ("test_kernels_on_gpu", "test_step_on_gpu", "test_terms_on_gpu")
# Parts of the names of the GPU tests that an op depends on, by the first word of its name.
GPU_TESTS_OF_OP = {
    "encode": ("encode", "ties", "every_rule"),
    "decode": ("decode", "every_token", "losses_equal", "every_rule"),
    "aux": ("losses_equal",),
    "update": ("adam",),
}
STEP_TESTS = ("tests/kernels/test_step.py", "tests/kernels/test_row_grads.py", "tests/training")


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_and_op_speed", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", action="store_true", help="whole training steps")
    what.add_argument(
        "--op", help=f"all, or ops separated by commas: {', '.join([*ops.OPS, 'update'])}"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="default: float32 on cpu, bfloat16 on cuda",
    )
    parser.add_argument(
        "--shape", action="append", metavar="D_IN,D_SAE,K,BATCH", help="can be repeated"
    )
    parser.add_argument(
        "--rule", default=",".join(RULES), help="sparsity rules of steps, separated by commas"
    )
    parser.add_argument("--provider", help="measure only providers whose name contains this")
    parser.add_argument("--seconds", type=float, default=10.0, help="time spent on each call")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=results_io.REPO / "benchmarks" / "results")
    parser.add_argument(
        "--tested",
        type=Path,
        nargs="+",
        help="JUnit XML files of earlier test runs; required with cuda",
    )
    parser.add_argument("--name", help="name of the result files; default: speed_<device>_<date>")
    args = parser.parse_args(argv)
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    args.shape = [_shape(text) for text in args.shape or SHAPES[args.device]]
    args.name = args.name or f"speed_{args.device}_{results_io.today()}"
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if args.device == "cuda" and not any(file.is_file() for file in args.tested or ()):
        raise UserError("--device cuda needs --tested FILE; benchmarks/gpu.sh writes that file")
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
    # --tested is given by benchmarks/gpu.sh, so that is the command that repeats these rows.
    command = "OUT=folder benchmarks/gpu.sh"
    if args.tested is None:
        command = results_io.command_line("benchmarks.step_and_op_speed", argv)
    measured: list[speed_tables.Row] = []
    for values in rows:
        measured.append(_row(args, command, values))
        file = speed_tables.write(args.out, args.name, measured)
        sys.stdout.write("\n".join(speed_tables.table(measured[-1:])[-1:]) + "\n")
        sys.stdout.flush()
    if measured:
        sys.stdout.write(f"{file.with_suffix('.md')}\n")


def _row(args: argparse.Namespace, command: str, values: dict) -> speed_tables.Row:
    shape: Shape = values.pop("shape")
    times: Times = values.pop("times")
    product, best_product = values.pop("product"), values.pop("best_product")
    best: Limits | None = values.pop("limits")
    flops, bytes_ = values.pop("cost")
    return speed_tables.Row(
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
        device=torch.cuda.get_device_name() if args.device == "cuda" else results_io.cpu_name(),
        threads=args.threads,
        torch=torch.__version__,
        triton=_version("triton"),
        commit=results_io.commit(),
        date=results_io.today(),
        command=command,
        **values,
    )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def failing_tests(args: argparse.Namespace, op: str, tests: tuple[str, ...]) -> str:
    """Return the failing tests among those that `op` depends on; empty if all pass.

    On CPU the tests run here. On a GPU `--tested` names JUnit files of tests that ran before: a
    step depends on all GPU tests of correctness (a limit on memory does not make a time wrong), an
    op on those in `GPU_TESTS_OF_OP` and on its own test files.
    """
    if args.tested is None:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", *tests, "-m", "not slow"],
            cwd=results_io.REPO,
            capture_output=True,
            text=True,
        )
        return done.stdout[-2000:] if done.returncode else ""
    files = [Path(test).stem for test in tests]
    words = ("",) if op == "step" else GPU_TESTS_OF_OP[op.partition("_")[0]]

    def is_relevant(case: ElementTree.Element) -> bool:
        file, name = case.get("classname", "").rsplit(".", 1)[-1], case.get("name", "")
        on_gpu = file in GPU_TESTS and any(word in name for word in words)
        return file in files or (on_gpu and "memory" not in name)

    cases = [
        case
        for file in args.tested
        if file.is_file()
        for case in ElementTree.parse(file).iter("testcase")
    ]
    relevant = list(filter(is_relevant, cases))
    if not relevant:
        return f"{', '.join(map(str, args.tested))}: no test of {op} ran"
    failed = [
        case.get("name", "")
        for case in relevant
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return ", ".join(failed)


def step_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one measurement for each shape, rule and provider.

    Raises UserError if tests of the step fail.
    """
    if failing := failing_tests(args, "step", STEP_TESTS):
        raise UserError(f"steps are not timed, because their tests fail: {failing}")
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
    """Return FLOPs and bytes of a step.

    Counted are the encoder's product, reading and writing fp32 parameters and moments of both
    matrices, and four gathers.
    """
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
        sys.stderr.write(f"{provider}, {rule}, {shape}: not measured: {error}\n")
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
        cwd=results_io.REPO,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the process died"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def op_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the measurements of the requested ops; skip those with failing tests."""
    names = [*ops.OPS, "update"] if args.op == "all" else args.op.split(",")
    for name in names:
        if name != "update" and name not in ops.OPS:
            raise UserError(
                f"--op {name} is not known; choose among {', '.join([*ops.OPS, 'update'])}"
            )
    for name in names:
        files = ops.Update.tests if name == "update" else ops.OPS[name].tests
        if failing := failing_tests(args, name, tuple(f"tests/kernels/{file}" for file in files)):
            sys.stderr.write(f"{name} is not timed, because its tests fail: {failing}\n")
            continue
        for shape in args.shape:
            yield from (_update(args, shape) if name == "update" else _op(args, name, shape))


def _op(args: argparse.Namespace, name: str, shape: Shape) -> Iterator[dict[str, Any]]:
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
            except Exception as error:  # a missing compiler, or not enough memory
                sys.stderr.write(f"{name}, {provider}, {shape}: not measured: {error!r:.300}\n")
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


def _update(args: argparse.Namespace, shape: Shape) -> Iterator[dict[str, Any]]:
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
    run_command(main)
