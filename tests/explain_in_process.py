"""Jobs that need a process of their own: forced devices, several processes, memory, SIGKILL, export.

`python explain_in_process.py JOB ARGUMENTS...`; the tests start it and read what it prints.
"""

import argparse
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lrpjax
from lrpjax import commands
from lrpjax.data import layout
from lrpjax.data.batches import explain_batches
from lrpjax.data.store import StoreError, open_store


def in_process(*arguments):
    """Runs a job of this file in a fresh process; gives what it printed."""
    (shown,) = in_processes(arguments)
    return shown


def in_processes(*jobs):
    """Runs jobs of this file at the same time, each in a fresh process; gives what each printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen([sys.executable, __file__, *map(str, job)], **pipes) for job in jobs]
    shown = [process.communicate(timeout=300) for process in processes]
    assert not any(process.returncode for process in processes), shown
    return [out for out, _ in shown]


def free_address():
    """An address on the loopback interface at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def explain(params, x):
    """Relevance for the largest output of a two-layer network."""

    def network(x):
        return jax.nn.relu(x @ params["in"]) @ params["out"]

    return lrpjax.relevance(network, lrpjax.composites.epsilon_plus(epsilon=0.1), target="max")(x)


def network():
    rng = np.random.default_rng(0)
    return {
        "in": rng.normal(size=(16, 32)).astype("float32"),
        "out": rng.normal(size=(32, 8)).astype("float32"),
    }


def memory():
    """Prints what the second half of 320 batches adds to the peak of host memory, the device's peak, a batch's size.

    By then the allocator's peak, which depends on how threads take turns, has been reached; what is kept would add 160
    batches.
    """
    batch = np.ones((1024, 1024), np.float32)
    unit = 1 if sys.platform == "darwin" else 1024
    device, host = [], []

    def batches():
        for number in range(320):
            device.append(sum(array.nbytes for array in jax.live_arrays()))
            if number == 160:
                host.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
            yield batch * number

    for _ in explain_batches(jax.jit(lambda x: 2 * x), batches(), progress=False):
        pass
    host.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    print(host[1] - host[0], max(device), batch.nbytes)


def devices(directory):
    """The results of eight devices against those of one, for params of every placement."""
    jax.config.update("jax_num_cpu_devices", 8)
    rng = np.random.default_rng(1)
    batches = [rng.normal(size=(rows, 16)).astype("float32") for rows in (16, 16, 16, 5)]
    params = network()
    expected = [np.asarray(explain(params, batch)) for batch in batches]
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    by_column = NamedSharding(mesh, PartitionSpec(None, "model"))
    placed = {**params, "in": jax.device_put(params["in"], by_column)}
    everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    for given in (params, placed, everywhere):
        for axis in (None, "model", ("data", "model")):
            results = list(
                explain_batches(explain, batches, params=given, mesh=mesh, axis=axis, progress=False)
            )
            assert [len(result) for result in results] == [16, 16, 16, 5]
            for result, wanted in zip(results, expected, strict=True):
                np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)

    spread = []

    def closed(x):
        jax.debug.inspect_array_sharding(x, callback=spread.append)
        return explain(params, x)

    with jax.set_mesh(mesh):
        results = list(explain_batches(closed, batches, mesh=mesh, axis=("data", "model"), progress=False))
    np.testing.assert_allclose(np.concatenate(results), np.concatenate(expected), rtol=1e-5, atol=1e-5)
    assert {sharding.shard_shape((16, 16)) for sharding in spread} == {(2, 16)}

    # What one device has stored is resumed on eight.
    one = explain_batches(explain, batches, params=params, store=Path(directory) / "store", progress=False)
    next(one)
    one.close()
    for _ in explain_batches(
        explain, batches, params=params, store=Path(directory) / "store", mesh=mesh, progress=False
    ):
        pass
    stored = np.asarray(open_store(Path(directory) / "store")["relevance"])
    np.testing.assert_allclose(stored, np.concatenate(expected), rtol=1e-5, atol=1e-5)

    try:
        next(explain_batches(explain, [batches[0][:6]], params=params, mesh=mesh, progress=False))
    except ValueError as error:
        assert "batches of 6 rows cannot be divided over the 4 devices" in str(error), error
    else:
        raise AssertionError("6 rows were divided over 4 devices")
    print("8 devices agree")


def share(case, index):
    """The batches of one of two processes."""
    if case == "empty" and index == 1:
        return
    rng = np.random.default_rng(index)
    for number in range(7 if case == "uneven" and index == 0 else 4):
        if case == "fails" and index == 1 and number == 3:
            raise OSError("the cable is out")
        columns = 8 if case == "structure" and index == 1 else 16
        yield rng.normal(size=(8 if number < 3 or case == "uneven" else 5, columns)).astype("float32")


def together(directory, address, index):
    """One of two processes: in each case explains its share, writes down what it expects or how it failed."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=int(index))
    index = jax.process_index()
    for case in ("even", "uneven", "apart", "fails", "again", "empty", "structure", "refused"):
        folder = Path(directory) / case.replace("again", "fails")
        folder.mkdir(exist_ok=True)
        if case == "refused" and index == 1:
            (folder / "store" / "process-00001").mkdir(parents=True)
            (folder / "store" / "process-00001" / "zarr.json").write_text("{}")
        mesh = Mesh(np.array(jax.local_devices() if case == "apart" else jax.devices()), ("data",))
        keywords = {"params": network(), "mesh": mesh, "store": folder / "store", "progress": False}
        try:
            results = list(explain_batches(explain, share(case, index), **keywords))
        except Exception as error:
            (folder / f"error-{index}").write_text(f"{type(error).__name__}: {error}")
            if case == "fails":
                stored = open_store(folder / "store" / f"process-{index:05d}").batches
                (folder / f"stored-{index}").write_text(str(stored.tolist()))
            continue
        expected = np.concatenate([np.asarray(explain(network(), batch)) for batch in share(case, index)])
        np.testing.assert_allclose(np.concatenate(results), expected, rtol=1e-5, atol=1e-5)
        np.save(folder / f"expected-{index}.npy", expected)


class Logged:
    """An explanation that notes, when it is really computed, which batches it was given."""

    def __init__(self, log):
        self.log = log

    def note(self, number):
        with open(self.log, "a", encoding="ascii") as file:
            file.write(f"{int(number)}\n")

    def __call__(self, batch):
        jax.debug.callback(self.note, batch[0, 0])
        return {"relevance": explain(network(), batch), "output": batch.sum(1)}


def numbered(count, size=8):
    """Batches whose first value is their number; the last one is short."""
    rng = np.random.default_rng(0)
    for number in range(count):
        batch = rng.normal(size=(size if number < count - 1 else 3, 16)).astype("float32")
        batch[0, 0] = number
        yield batch


def killed(directory, kills, count):
    """Kills a run that explains `count` batches `kills` times at random, starting it again each time.

    Each life is a fork from here that has not used JAX yet. A life that will be killed stops after its share of
    the batches, so that however fast the machine is, there is work left for every life. Prints, for each life,
    how many batches were stored when it began, and which ones it computed.
    """
    kills, count, directory = int(kills), int(count), Path(directory)
    delay = random.Random(0)
    share = count // kills - 4  # four more may be stored when it stops
    layout.CHUNK_BATCHES = 4  # so that many lives end near the writing of a shard
    for life in range(kills + 1):
        stored = in_a_fork(lambda: len(open_store(directory / "store").batches)) if life else 0
        log = directory / f"log-{life}"
        log.touch()
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            results = explain_batches(
                jax.jit(Logged(log)), numbered(count), store=directory / "store", progress=False
            )
            for number, _ in enumerate(results):
                if number >= stored:
                    os.write(writer, b".")
                if life < kills and number >= stored + share - 1:
                    signal.pause()
            os._exit(0)
        os.close(writer)
        if life < kills:
            if delay.random() < 0.8:  # in this life's first batches; else anywhere from its birth on
                os.read(reader, 1)
                time.sleep(delay.random() * 0.02)
            else:
                time.sleep(delay.random() * 0.5)
            os.kill(child, signal.SIGKILL)
        os.close(reader)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) == (life < kills), (life, status)
        print(stored, log.read_text().split())


def in_a_fork(count):
    """A number that a function gives, computed in a fork of its own: tensorstore must not be used before a fork."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            number = count()
        except StoreError as error:
            number = 0
            if "there is no store" not in str(error) and "cannot be read" not in str(error):
                print(error, file=sys.stderr)
                number = -1
        os.write(writer, str(number).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="ascii") as file:
        found = int(file.read())
    os.waitpid(child, 0)
    assert found >= 0
    return found


def undisturbed(store, count):
    """The run that `killed` kills."""
    layout.CHUNK_BATCHES = 4
    for _ in explain_batches(jax.jit(Logged(os.devnull)), numbered(int(count)), store=store, progress=False):
        pass


def command(*arguments):
    """The part of the command line that lrpjax.commands provides; gives the exit code."""
    parser = argparse.ArgumentParser("lrpjax")
    subparsers = parser.add_subparsers(required=True)
    for add in (
        commands.add_explain_parser,
        commands.add_plan_parser,
        commands.add_show_parser,
        commands.add_save_parser,
    ):
        add(subparsers)
    args = parser.parse_args(list(map(str, arguments)))
    return args.run(args)


JOBS = {job.__name__: job for job in (memory, devices, together, killed, undisturbed, command)}

if __name__ == "__main__":
    warnings.simplefilter("error")
    JOBS[sys.argv[1]](*sys.argv[2:])
