"""Run a function in several gloo processes on this machine.

A fork server imports torch and transformers once; each process is a cheap fork of it.
"""

import multiprocessing
import os
import pickle
import socket
import traceback
from multiprocessing.connection import Connection, wait

import torch
import torch.distributed as dist

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "tests.distributed.processes",
        "tests.distributed.scenarios",
        "tests.distributed.trainer_scenarios",
    ]
)
TIMEOUT_S = 900


def run(processes, function, *args):
    """What `function(*args)` returns in each process, by rank. It must be picklable."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers, receivers = [], []
    for rank in range(processes):
        receiver, sender = _context.Pipe(duplex=False)
        worker = _context.Process(
            target=_work, args=(rank, processes, port, sender, function, args), daemon=True
        )
        worker.start()
        sender.close()
        workers.append(worker)
        receivers.append(receiver)
    try:
        results = [None] * processes
        waiting = dict(zip(receivers, range(processes), strict=True))
        while waiting:
            ready = wait(list(waiting), timeout=TIMEOUT_S)
            assert ready, f"ranks {sorted(waiting.values())} gave no result in {TIMEOUT_S} s"
            for receiver in ready:
                rank = waiting.pop(receiver)
                try:
                    results[rank], error = pickle.loads(receiver.recv_bytes())
                except EOFError:
                    error = "died without a word"
                assert error is None, f"rank {rank}: {error}"
        return results
    finally:
        for worker in workers:
            worker.join(timeout=5)
            worker.kill()


def _work(rank, processes, port, sender: Connection, function, args):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=processes)
        result, error = function(*args), None
    except BaseException:
        result, error = None, traceback.format_exc()
    # Not send(): it would share tensors with a process that ends here.
    sender.send_bytes(pickle.dumps((result, error)))
    sender.close()
    if error is None and dist.is_initialized():
        dist.destroy_process_group()
