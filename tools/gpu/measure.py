"""Time and memory of a contestant on a device, and how fast its memory is."""

import time
from dataclasses import replace
from statistics import median

import torch
from bench_measure import Contestant
from gpu.settings import Settings, Values

FLUSH = 2**28  # bytes written before each run: more than a cache of the device holds
ROUNDS = 3, 100  # timed runs, at least and at most
WARM_UP = 3


def timed(contestant: Contestant, settings: Settings, *, graph: bool = True) -> Values:
    """Median milliseconds of a run, started by Python; on CUDA also of the device alone, where the run is captured as a graph
    (`graph ms`, or why it cannot be captured), and the most memory beyond what there was before it (`MiB`)."""
    ms = milliseconds(contestant, settings)
    if settings.device.type != "cuda":
        return {"ms": ms}
    contestant.forget()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contestant.run()
    values: Values = {"ms": ms, "MiB": (torch.cuda.max_memory_allocated() - before) / 2**20}
    if graph:
        try:
            values["graph ms"] = milliseconds(captured(contestant), settings)
        except RuntimeError as error:
            values["graph"] = f"cannot be captured: {first_line(error)}"
    contestant.forget()
    return values


def milliseconds(contestant: Contestant, settings: Settings) -> float:
    """Median over so many runs as take `settings.seconds`, each after the device's cache was overwritten."""
    on_gpu = settings.device.type == "cuda"
    flush = torch.empty(FLUSH, dtype=torch.int8, device=settings.device) if on_gpu else None
    for _ in range(WARM_UP if on_gpu else 1):
        contestant.forget()
        contestant.run()
    one = _one(contestant, flush)
    rounds = min(max(int(1e3 * settings.seconds / one), ROUNDS[0]), ROUNDS[1])
    return median(_one(contestant, flush) for _ in range(rounds)) if settings.seconds else one


def _one(contestant: Contestant, flush: torch.Tensor | None) -> float:
    """Milliseconds of one run. On CUDA between two events; the host is ahead of the device while that overwrites its cache."""
    contestant.forget()
    if flush is None:
        start = time.perf_counter()
        contestant.run()
        return 1e3 * (time.perf_counter() - start)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()
    start.record()
    contestant.run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def captured(contestant: Contestant) -> Contestant:
    """The same work as a CUDA graph: nothing of a replay is the host's. A run that waits for the device cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is made at first use must not be made while capturing
        for _ in range(WARM_UP):
            contestant.forget()
            contestant.run()
    torch.cuda.current_stream().wait_stream(side)
    contestant.forget()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        contestant.run()
    return Contestant(graph.replay)  # its gradients stay where they were captured


def bandwidth(settings: Settings) -> float:
    """Bytes per second that the device's memory reads and writes, in a copy of 1 GiB (of 16 MiB on a CPU)."""
    x = torch.zeros(2**30 if settings.device.type == "cuda" else 2**24, dtype=torch.int8, device=settings.device)
    y = torch.empty_like(x)
    ms = milliseconds(Contestant(lambda: y.copy_(x)), replace(settings, seconds=0.1))
    return 2 * x.nbytes / (1e-3 * ms)


def first_line(error: BaseException) -> str:
    """What kind of error, and the beginning of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
