"""Hosts with a network of their own: network namespaces of one machine, and a relay that carries frames between them.

Needs root, `ip` and /dev/net/tun. The relay stands for cables and switch: it delays frames, limits their rate, and can
be cut; it needs no queueing discipline of the kernel's, which not every kernel has.
"""

import fcntl
import heapq
import itertools
import math
import os
import select
import signal
import struct
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

TUNSETIFF, TAP, WITHOUT_HEADER = 0x400454CA, 0x0002, 0x1000
MTU = 9000
PORT = 29400
SETTINGS = {"ipv6/conf/all/disable_ipv6": 1, "ipv4/tcp_retries2": 6}
"""Of each host's network. TCP gives up after 25 seconds, not after a quarter of an hour."""
_numbers = itertools.count()


def _ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


def _remove(name):
    """A namespace, and the processes in it."""
    for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _sweep():
    """Removes what processes left that were killed before they could."""
    for path in Path("/run/netns").glob("lh*-*-*"):
        if not Path(f"/proc/{path.name[2:].split('-')[0]}").exists():
            _remove(path.name)


def refusal():
    """Why there can be no hosts here; None where there can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    try:
        with Hosts(1):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces: {getattr(error, 'stderr', None) or error}"


class Hosts:
    """So many hosts, 10.77.0.1 and up, each on interface eth0 of a namespace; a context.

    Args:
        count: of hosts.
        delay: seconds that a frame is on its way.
        rate: bits per second that a host can send.
    """

    def __init__(self, count, delay=0.0, rate=math.inf):
        self.delay, self.rate = delay, rate
        number = next(_numbers)
        self.names = [f"lh{os.getpid()}-{number}-{i}" for i in range(count)]
        self.sent = [0] * count
        """Bytes that each host has sent, headers included."""
        self._cut = set()
        self._taps = []
        self._processes = []
        self._ended = threading.Event()
        self._relay = threading.Thread(target=self._carry, daemon=True)

    def __enter__(self):
        _sweep()
        try:
            for i, name in enumerate(self.names):
                self._build(i, name)
        except BaseException:
            self.__exit__()
            raise
        self._relay.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        if self._relay.is_alive():
            self._relay.join()
        for process in self._processes:
            process.kill()
        for name in self.names:
            _remove(name)
        for process in self._processes:
            process.wait()
            process.stdout.close()
        for tap in self._taps:
            os.close(tap)

    @staticmethod
    def address(host):
        return f"10.77.0.{host + 1}"

    def cut(self, host):
        """Nothing reaches the host or comes from it any more, and nobody is told."""
        self._cut.add(host)

    def start(self, host, command, **options):
        """A process on a host, which ends with the context at the latest."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        self._processes.append(process)
        return process

    def torchrun(self, python, command, directories, ranks=1, restarts=0, **environment):
        """One `torchrun` on each host, in a working directory of its own, with so many ranks each."""
        tests = Path(__file__).parent
        common = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0", **environment}
        common["PYTHONPATH"] = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
        launcher = (python, "-m", "torch.distributed.run", f"--nnodes={len(self.names)}", f"--nproc-per-node={ranks}")
        meeting = ("--rdzv-backend=c10d", f"--rdzv-endpoint={self.address(0)}:{PORT}", "--rdzv-id=run")
        more = (*meeting, f"--max-restarts={restarts}", "--monitor-interval=0.1")
        processes = []
        for host, directory in enumerate(directories):
            here = (f"--local-addr={self.address(host)}", f"--rdzv-conf=is_host={int(host == 0)}")
            processes.append(self.start(host, (*launcher, *more, *here, *command), cwd=directory, env=common))
        return processes

    def _build(self, i, name):
        _ip("netns", "add", name)
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self._taps.append(tap)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name[:15].encode(), TAP | WITHOUT_HEADER))
        _ip("link", "set", name[:15], "netns", name, "name", "eth0")
        inside = ("-n", name)
        for setting, value in SETTINGS.items():
            _ip("netns", "exec", name, "sh", "-c", f"echo {value} > /proc/sys/net/{setting}")
        _ip(*inside, "address", "add", f"{self.address(i)}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "mtu", MTU, "up")
        _ip(*inside, "link", "set", "lo", "up")

    def _carry(self):
        """Every frame goes to all other hosts, which drop what isn't for them."""
        waiting, order, free = [], itertools.count(), [0.0] * len(self._taps)
        while not self._ended.is_set():
            patience = min(0.1, max(0.0, waiting[0][0] - time.monotonic())) if waiting else 0.1
            for tap in select.select(self._taps, (), (), patience)[0]:
                host = self._taps.index(tap)
                with suppress(BlockingIOError):
                    while frame := os.read(tap, MTU + 100):
                        self.sent[host] += len(frame)
                        free[host] = max(free[host], time.monotonic()) + 8 * len(frame) / self.rate
                        heapq.heappush(waiting, (free[host] + self.delay, next(order), host, frame))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, host, frame = heapq.heappop(waiting)
                for other, tap in enumerate(self._taps):
                    if other != host and not {host, other} & self._cut:
                        with suppress(BlockingIOError):
                            os.write(tap, frame)
