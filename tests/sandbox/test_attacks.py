"""Programs that try to get out, to stay, to take everything, or to pass without being right."""

from __future__ import annotations

import json
import os
import socket
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from balora.sandbox import Task
from support.sandbox import require_sandbox, run_here

ENDED = {"timed out", "died", "failed", "raised", "unreadable", "printed too much"}

# each function returns what it got: the name of an error, or something that must not be
REFUSED = {
    # attack: (what it does, what it may get)
    "descriptors that were left open": ("open_descriptors()", {"only ours"}),
    "password file": ("open('/etc/passwd').read()", {"ENOENT"}),
    "shadow file": ("open('/etc/shadow').read()", {"ENOENT"}),
    "home of root": ("os.listdir('/root')", {"ENOENT"}),
    "homes": ("os.listdir('/home')", {"ENOENT"}),
    "a file of the user": ("open(BAIT).read()", {"ENOENT"}),
    "the package": ("open(PACKAGE).read()", {"ENOENT"}),
    "by the root of process 1": ("open('/proc/1/root' + BAIT).read()", {"ENOENT", "EACCES"}),
    "by dots": ("open('../' * 40 + BAIT[1:]).read()", {"ENOENT"}),
    "by a symbolic link": (
        "[os.symlink(BAIT, '/tmp/link'), open('/tmp/link').read()]",
        {"ENOENT"},
    ),
    "a hard link": ("os.link('/usr/bin/env', '/tmp/env')", {"EXDEV", "EPERM"}),
    "writing below /usr": ("os.open('/usr/bin/new', os.O_CREAT | os.O_WRONLY)", {"EROFS"}),
    "writing over the interpreter": (
        "os.open(sys.executable, os.O_WRONLY)",
        {"EROFS", "EACCES", "ETXTBSY"},
    ),
    "writing to /": ("os.open('/new', os.O_CREAT | os.O_WRONLY)", {"EROFS", "EACCES"}),
    "writing to /dev": ("os.open('/dev/new', os.O_CREAT | os.O_WRONLY)", {"EROFS", "EACCES"}),
    "the machine's memory": ("os.open('/dev/mem', os.O_RDONLY)", {"ENOENT"}),
    "a device": ("os.mknod('/tmp/sda', 0o60666, os.makedev(8, 0))", {"EPERM"}),
    "core_pattern": (
        "os.write(os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY), b'|/bin/sh')",
        {"EROFS", "EACCES", "ENOENT"},
    ),
    "uid_map": (
        "os.write(os.open('/proc/self/uid_map', os.O_WRONLY), b'0 0 1')",
        {"EPERM", "EACCES", "EROFS"},
    ),
    "oom_score_adj": (
        "os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1000')",
        {"EACCES", "EROFS", "EPERM"},
    ),
    "TCP to this machine": ("socket.create_connection(('127.0.0.1', PORT), 2)", {"EPERM"}),
    "TCP elsewhere": ("socket.create_connection(('1.1.1.1', 53), 2)", {"EPERM"}),
    "the metadata address": ("socket.create_connection(('169.254.169.254', 80), 2)", {"EPERM"}),
    "UDP": ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", {"EPERM"}),
    "an abstract socket": ("socket.socket(socket.AF_UNIX).connect(chr(0) + NAME)", {"EPERM"}),
    "AF_ALG": ("socket.socket(38, socket.SOCK_SEQPACKET)", {"EPERM"}),
    "AF_VSOCK": ("socket.socket(40, socket.SOCK_STREAM)", {"EPERM"}),
    "AF_NETLINK": ("socket.socket(16, socket.SOCK_RAW)", {"EPERM"}),
    "kill the evaluator": ("os.kill(EVALUATOR, 9)", {"ESRCH", "EPERM"}),
    "memory of process 1": ("memory_of_another(1)", {"EACCES", "EPERM", "itself"}),
    "environment of process 1": ("environment_of(1)", {"EACCES", "EPERM", "only ours"}),
    "ptrace": ("call(101, 16, 1, 0, 0)", {"EPERM"}),
    "process_vm_readv": ("call(310, 1, 0, 0, 0, 0, 0)", {"EPERM"}),
    "process_vm_writev": ("call(311, 1, 0, 0, 0, 0, 0)", {"EPERM"}),
    "pidfd_getfd": ("call(438, 3, 0, 0)", {"EPERM"}),
    "raise a limit": (
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        {"EPERM", "ValueError"},
    ),
    "raise the limit on processes": (
        "resource.setrlimit(resource.RLIMIT_NPROC, (1 << 20, 1 << 20))",
        {"EPERM", "ValueError"},
    ),
    "nice": ("os.nice(-20)", {"EPERM", "EACCES"}),
    "real time": ("os.sched_setscheduler(0, 1, os.sched_param(50))", {"EPERM"}),
    "become root": ("os.setuid(0)", {"EPERM", "EINVAL"}),
    "groups of root": ("os.setgroups([0])", {"EPERM"}),
    "set the clock": ("time.clock_settime(time.CLOCK_REALTIME, 0)", {"EPERM"}),
    "mount": ("call(165, b'x', b'/tmp', b'tmpfs', 0, 0)", {"EPERM"}),
    "umount": ("call(166, b'/tmp', 0)", {"EPERM"}),
    "unshare a user namespace": ("call(272, 0x10000000)", {"EPERM"}),
    "clone a user namespace": ("call(56, 0x10000000 | 17, 0, 0, 0, 0)", {"EPERM"}),
    "clone3": ("call(435, 0, 0)", {"ENOSYS"}),
    "setns": ("call(308, 0, 0)", {"EPERM"}),
    "chroot": ("os.chroot('/tmp')", {"EPERM"}),
    "pivot_root": ("call(155, b'/tmp', b'/tmp')", {"EPERM"}),
    "sethostname": ("socket.sethostname('x')", {"EPERM"}),
    "reboot": ("call(169, 0xfee1dead, 672274793, 0, 0)", {"EPERM"}),
    "kexec": ("call(246, 0, 0, 0, 0)", {"EPERM"}),
    "a module": ("call(175, 0, 0, b'')", {"EPERM"}),
    "keys": ("[call(n, 0, 0, 0, 0, 0) for n in (248, 249, 250)]", {"EPERM"}),
    "bpf": ("call(321, 0, 0, 0)", {"EPERM"}),
    "perf": ("call(298, 0, 0, 0, 0, 0)", {"EPERM"}),
    "userfaultfd": ("call(323, 1)", {"EPERM"}),
    "io_uring": ("call(425, 1, 0)", {"EPERM"}),
    "open by handle": ("call(304, 0, 0, 0)", {"EPERM"}),
    "a call of tomorrow": ("call(600)", {"ENOSYS"}),
    "memfd": ("os.memfd_create('x')", {"EPERM"}),
    "SysV shared memory": ("call(29, 0, 1 << 30, 0o1600)", {"EPERM"}),
    "message queue": ("call(240, b'/x', 0o102, 0o600, 0)", {"EPERM"}),
    "the terminal": ("open('/dev/tty')", {"ENXIO", "ENOENT"}),
    "push into the terminal": ("fcntl.ioctl(0, 0x5412, b'x')", {"EPERM"}),
    "outlive who started it": ("call(157, 1, 0, 0, 0, 0)", {"EPERM"}),
    "the machine's share of requests": (
        "call(206, 60000, ctypes.byref(ctypes.c_ulong(0)))",
        {"EPERM"},
    ),
    "the user's share of watches": ("call(294, 0)", {"EPERM"}),
    "a sparse file": ("os.ftruncate(os.open('/tmp/s', os.O_CREAT | 2), 1 << 40)", {"EFBIG"}),
    "memory that is only reserved": ("mmap.mmap(-1, 1 << 40, flags=0x4022)", {"ENOMEM"}),
    "the keys of an operator": ("os.open('/proc/sysrq-trigger', 1)", {"ENOENT", "EACCES", "EROFS"}),
    "the kernel's memory": ("os.open('/proc/kcore', 0)", {"ENOENT", "EACCES", "EPERM"}),
    "the kernel's messages": ("os.open('/proc/kmsg', 0)", {"ENOENT", "EACCES", "EPERM"}),
    "the kernel's settings": ("os.listdir('/sys')", {"ENOENT"}),
    "the tests where processes show themselves": ("shown_of_tests()", {"nothing"}),
    "fill /tmp": ("fill('/tmp')", {"ENOSPC"}),
    "fill the working folder": ("fill('.')", {"ENOSPC"}),
    "fill /dev/shm": ("fill('/dev/shm')", {"ENOSPC", "EROFS"}),
    "one large file": (
        "os.write(os.open('/tmp/l', 65), bytes(1 << 26))",
        {"short", "EFBIG", "ENOSPC"},
    ),
    "memory": ("bytes(2 << 30)", {"MemoryError"}),
    "shared memory": ("mmap.mmap(-1, 2 << 30)", {"ENOMEM"}),
    "setuid programs": ("uids_of('su', 'passwd', 'mount')", {"no other user"}),
    "locked memory": ("call(151, 3)", {"EPERM", "ENOMEM"}),
    "open files": ("[os.pipe() for _ in range(100)]", {"EMFILE"}),
    "full pipes": ("[full_pipe() for _ in range(100)]", {"EMFILE"}),
    "core": ("resource.getrlimit(resource.RLIMIT_CORE)[1]", {"0"}),
}

ATTACKER = """\
import ctypes, errno, fcntl, mmap, os, resource, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *arguments) == -1:
        raise OSError(ctypes.get_errno(), "")
    return "done"
def fill(folder):
    for number in range(64):
        with open(os.path.join(folder, f"fill{number}"), "wb", buffering=0) as file:
            file.write(bytes(1 << 20))
    return "64 MiB"
def full_pipe():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, bytes(65536))
    return reader
def memory_of_another(pid):
    if pid == os.getpid():
        return "itself"
    os.open(f"/proc/{pid}/mem", os.O_RDWR)
    return "opened"
def environment_of(pid):
    names = {one.split(b"=")[0] for one in open(f"/proc/{pid}/environ", "rb").read().split(b"\\0")}
    known = {b"", b"HOME", b"LANG", b"LC_CTYPE", b"PATH", b"PWD", b"PYTHONHASHSEED", b"TMPDIR",
             b"LD_LIBRARY_PATH"}
    return "only ours" if names <= known else repr(names - known)
def uids_of(*programs):
    # what a setuid program runs as, seen while it is stopped at its first read
    for name in programs:
        path = f"/usr/bin/{name}"
        if not os.path.exists(path) or not os.stat(path).st_mode & 0o4000:
            continue
        process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
        try:
            lines = open(f"/proc/{process.pid}/status").read().splitlines()
            uids = next(line for line in lines if line.startswith("Uid:")).split()[1:]
        finally:
            process.kill()
            process.wait()
        if "0" in uids:
            return f"{name} is root"
    return "no other user"
def open_descriptors():
    known = []
    for number in range(64):
        try:
            known.append(os.readlink(f"/proc/self/fd/{number}").partition(":")[0])
        except OSError:
            pass
    # nothing to read from; output and errors; requests and replies
    return "only ours" if sorted(known) == ["/dev/null"] + ["pipe"] * 4 else str(known)
def shown_of_tests():
    needle = b"assert " + b"done"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("cmdline", "environ", "comm", "auxv"):
            try:
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    if needle in file.read():
                        return f"{pid} {name}"
            except OSError:
                pass
    return "nothing"
def attempt(text):
    try:
        result = eval(text)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except BaseException as error:
        return type(error).__name__
    if text.startswith("os.write") and isinstance(result, int) and result < 1 << 26:
        return "short" if "/tmp/l" in text else f"wrote {result}"
    return str(result)[:40]
for name, text in ATTEMPTS.items():
    print(name, attempt(text), sep="\\t")
def done(): return True
"""


@pytest.fixture(scope="module")
def got(run, tmp_path_factory) -> dict[str, str]:
    """What every attempt got, all of them in a few sandboxes."""
    bait = tmp_path_factory.mktemp("bait") / "secret"
    bait.write_text("secret")
    server = socket.create_server(("127.0.0.1", 0))
    unix, name = socket.socket(socket.AF_UNIX), f"balora-bait-{os.getpid()}"
    unix.bind(f"\0{name}")
    unix.listen()
    names, outcome = list(REFUSED), {}
    try:
        for start in range(0, len(names), 30):
            constants = {
                "BAIT": str(bait),
                "PACKAGE": str(Path(__file__).resolve()),
                "PORT": server.getsockname()[1],
                "NAME": name,
                "EVALUATOR": os.getpid(),
                "ATTEMPTS": {name: REFUSED[name][0] for name in names[start : start + 30]},
            }
            head = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
            result = run(head + ATTACKER, Task(("done",), "", ("assert done()",)))
            assert result.passed, result
            outcome |= dict(line.split("\t") for line in result.output.strip().splitlines())
    finally:
        server.close()
        unix.close()
    assert outcome.keys() == REFUSED.keys()
    return outcome


@pytest.mark.parametrize("attack", REFUSED)
def test_what_a_program_reaches_for_is_not_there(attack, got):
    assert got[attack] in REFUSED[attack][1]


# programs that are asked for twice(2), and must not pass: not one of them is right
FAKES = {
    "exit before the tests": "import sys; sys.exit(0)",
    "leave before the tests": "import os; os._exit(0)",
    "exit in a test": "def twice(x): raise SystemExit(0)",
    "leave in a test": "def twice(x):\n import os; os._exit(0)",
    "equal to everything": (
        "class A:\n __eq__ = lambda s, o: True\n __ne__ = lambda s, o: False\n"
        " __hash__ = lambda s: 4\n"
        "def twice(x): return A()"
    ),
    "an int that is equal": "class I(int):\n __eq__ = lambda s, o: True\ndef twice(x): return I(5)",
    "a list that is equal": (
        "class L(list):\n __eq__ = lambda s, o: True\ndef twice(x): return L([5])"
    ),
    "a class that claims to be int": (
        "class I:\n __class__ = int\n __eq__ = lambda s, o: True\ndef twice(x): return I()"
    ),
    "patched builtins": (
        "import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {})\n"
        "builtins.exec = builtins.compile = lambda *a, **k: None\n"
        "builtins.isinstance = lambda *a: True\ndef twice(x): return 5"
    ),
    "patched JSON": (
        'import json\njson.dumps = lambda *a, **k: \'{"result": 4, "outcome": "passed"}\'\n'
        "def twice(x): return None"
    ),
    "patched modules": (
        "import sys\nfor name, module in list(sys.modules.items()):\n"
        " if name.endswith('plain'): module.encode = lambda *a: {'outcome': 'passed'}\n"
        "def twice(x): return 5"
    ),
    "a function of the tests": "def check(f): pass\ndef twice(x): return 5",
    "the tests in its frames": (
        "import sys\ndef twice(x):\n frame, found = sys._getframe(), []\n"
        " while frame:\n"
        "  found += [v for v in frame.f_globals.values() if isinstance(v, str) and '==' in v]\n"
        "  found += [v for v in frame.f_locals.values() if isinstance(v, str) and '==' in v]\n"
        "  frame = frame.f_back\n"
        " return 4 if any('twice(2) ==' in v for v in found) else 5"
    ),
    "the tests in its memory": (
        "import gc\ndef twice(x):\n needle = 'twice(2)' + ' == '\n"
        " texts = [v for v in gc.get_objects() if isinstance(v, dict)]\n"
        " found = any(isinstance(v, str) and needle in v and 'texts' not in v\n"
        "             for d in texts for v in list(d.values()))\n"
        " return 4 if found else 5"
    ),
    "memory of its parent": (
        "import os\ndef twice(x):\n try: data = open(f'/proc/{os.getppid()}/mem', 'rb').read(1)\n"
        " except OSError: return 5\n return 4"
    ),
    "a verdict on every descriptor": (
        "import os\ndef twice(x):\n for number in range(64):\n"
        '  try: os.write(number, b\'\\n{"outcome": "passed", "detail": ""}\\n\')\n'
        "  except OSError: pass\n return 5"
    ),
    "a verdict on its output": (
        'print(\'\\0ready\\n{"outcome": "passed", "detail": ""}\', flush=True)\n'
        "def twice(x): return 5"
    ),
    "the words of success": "print('passed', 'ok', 'OK', '1 passed in 0.01s')\ndef twice(x): 0",
    "tracing": "import sys\nsys.settrace(lambda *a: None)\ndef twice(x): return 5",
    "an exception of comparison": "def twice(x): raise AssertionError('4 == 4')",
    "no descriptors": "import os\ndef twice(x):\n os.closerange(0, 100)\n return 5",
    "descriptors that are mixed up": "import os\ndef twice(x):\n os.dup2(3, 6)\n return 5",
    "half an answer": (
        "import os\ndef twice(x):\n for number in range(3, 64):\n"
        "  try: os.write(number, b'{\"result\": 4')\n  except OSError: pass\n os._exit(0)"
    ),
    "two that answer": "import os\ndef twice(x):\n os.fork()\n return 5",
    "a truth that leaves": (
        "import sys\nclass A:\n def __bool__(s): sys.exit(0)\ndef twice(x): return A()"
    ),
    "a text that leaves": (
        "import sys\nclass E(Exception):\n def __str__(s): sys.exit(0)\ndef twice(x): raise E"
    ),
    "a number that cannot be compared": (
        "from decimal import Decimal\ndef twice(x): return Decimal('sNaN')"
    ),
    "nothing": "",
    "no Python": "def twice(x) return 4",
    "not a number": "def twice(x): return float('nan')",
    "deep data": "def twice(x):\n v = 4\n for _ in range(100000): v = [v]\n return v",
    "data that hold themselves": "def twice(x):\n v = []\n v.append(v)\n return v",
    "much data": "def twice(x): return 'x' * (1 << 28)",
    "segmentation fault": "import ctypes\ndef twice(x): return ctypes.string_at(0)",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef twice(x): return twice(x)",
    "recursion in C": (
        "import functools\ndef twice(x):\n f = len\n"
        " for _ in range(10**5): f = functools.partial(f)\n return repr(f)"
    ),
}


def with_slow(names, slow):
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


@pytest.mark.parametrize("fake", with_slow(FAKES, ("recursion", "much data")))
def test_a_program_that_is_wrong_does_not_pass(fake, run_longer):
    tests = Task(("twice",), "", ("assert twice(2) == 4", "assert twice(3) == 6"))
    result = run_longer(FAKES[fake], tests, seconds=2)
    assert result.outcome in ENDED, result


def test_hostile_lines_on_the_channel_are_no_answer(run_longer):
    lines = ["[" * 100000, '{"result": {"dict": 1}}', '{"result": {"handle": 1}}', "{", "4", "\x80"]
    for line in lines:
        program = (
            "import os\ndef twice(x):\n for number in range(3, 64):\n"
            f"  try: os.write(number, {line + chr(10)!r}.encode('latin-1'))\n"
            "  except OSError: pass\n return 5"
        )
        result = run_longer(program, Task(("twice",), "", ("assert twice(2) == 4",)), seconds=2)
        assert result.outcome in ENDED, (line[:40], result)


def test_a_test_that_catches_everything_still_fails_with_the_program_gone(run_longer):
    tests = Task(("twice",), "", ("try:\n twice(2)\nexcept BaseException:\n pass",))
    assert run_longer("def twice(x):\n import os; os._exit(0)", tests).outcome == "died"


@pytest.mark.parametrize(
    "test",
    [
        "assert all(map(lambda pair: twice(pair[0]) == pair[1], [(2, 4), (3, 6)]))",
        "assert not list(filter(lambda pair: twice(pair[0]) != pair[1], [(2, 4), (3, 6)]))",
    ],
)
def test_an_end_of_iteration_is_no_end_of_the_tests(test):
    """`map` and `filter` stop where what they call raises it, and the tests would be over."""
    require_sandbox()
    tests = Task(("twice",), "", (test,))
    assert run_here("def twice(x): raise StopIteration", tests).outcome == "raised"
    assert run_here("def twice(x): return 2 * x", tests).passed


def test_answers_written_early_pass_only_if_they_are_right(run_longer):
    def early(value: int) -> str:
        line = json.dumps({"result": value}) + "\n"
        return textwrap.dedent(
            f"""
            import os
            def twice(x):
                for number in range(3, 64):
                    try:
                        os.write(number, {line!r}.encode() * 2)
                    except OSError:
                        pass
                return 5
            """
        )

    tests = Task(("twice",), "", ("assert twice(2) == 4", "assert twice(3) == 6"))
    assert not run_longer(early(4), tests).passed


# programs that would never end or take all there is: (program, outcomes), ended within their time
ENDLESS = {
    "loop": ("def go():\n while True: pass", {"timed out"}),
    "loop while loading": ("while True: pass", {"timed out"}),
    "sleep": ("import time\ndef go(): time.sleep(1000)", {"timed out"}),
    "loop in spite of signals": (
        "import signal\nfor number in (2, 15, 24): signal.signal(number, signal.SIG_IGN)\n"
        "def go():\n while True: pass",
        {"timed out"},
    ),
    "output": ("def go():\n while True: print('x' * 10000)", {"printed too much", "timed out"}),
    "processes": (
        "import os, time\ndef go():\n while True:\n  try: os.fork()\n  except OSError: pass",
        {"timed out", "died", "unreadable"},
    ),
    "zombies": (
        "import os\ndef go():\n made = 0\n try:\n  while True:\n   if os.fork() == 0: os._exit(0)\n"
        "   made += 1\n except OSError: return made < 8 and -1",
        {"failed", "timed out"},
    ),
    "threads": (
        "import threading, time\ndef go():\n made = []\n try:\n  while True:\n"
        "   thread = threading.Thread(target=time.sleep, args=(9,), daemon=True)\n"
        "   thread.start()\n   made.append(thread)\n except RuntimeError:\n  return len(made) < 8",
        {"passed"},
    ),
    "memory of many processes": (
        "import os, time\ndef go():\n for _ in range(30):\n  try:\n   if os.fork() == 0:\n"
        "    block = bytearray(64 << 20)\n    time.sleep(1000)\n  except OSError: pass\n"
        " time.sleep(1000)",
        {"timed out"},
    ),
    "a daemon": (
        "import os, time\ndef go():\n if os.fork() == 0:\n  os.setsid()\n"
        "  if os.fork() == 0:\n   while True: time.sleep(1)\n  os._exit(0)\n return True",
        {"passed"},
    ),
    "kill everybody": (
        "import os, signal\ndef go():\n try: os.kill(-1, signal.SIGKILL)\n except OSError: pass\n"
        " return 5",
        {"failed", "died"},
    ),
    "huge numbers": ("def go(): return 10 ** 10 ** 8 and 0", {"timed out", "failed"}),
    "processes in sessions of their own": (
        "import os\ndef go():\n while True:\n  try:\n   if os.fork() == 0: os.setsid()\n"
        "  except OSError: pass",
        {"timed out", "died", "unreadable"},
    ),
    "a child that stays when its parent leaves": (
        "import os, time\ndef go():\n if os.fork() == 0:\n  os.setsid()\n  time.sleep(1000)\n"
        " os._exit(0)",
        {"died"},
    ),
    # as process 1 of its namespace it cannot be stopped
    "stops itself": (
        "import os, signal\ndef go():\n os.kill(os.getpid(), signal.SIGSTOP)\n return 5",
        {"timed out", "failed"},
    ),
    "output without a line": (
        "import os\ndef go():\n while True: os.write(2, b'x' * 4096)",
        {"printed too much"},
    ),
    "an exception whose text never ends": (
        "class E(Exception):\n def __str__(s):\n  while True: pass\ndef go(): raise E",
        {"timed out"},
    ),
    # these take the time of the tests' process
    "numbers with one hash": (
        "def go(): return dict.fromkeys(n * ((1 << 61) - 1) for n in range(150000))",
        {"timed out", "unreadable"},
    ),
    "a fraction without end": (
        "class F:\n def __str__(s): return '1e99999999'\n"
        "F.__module__, F.__name__ = 'fractions', 'Fraction'\ndef go(): return F()",
        {"timed out", "unreadable"},
    ),
    "an endless iterator": (
        "import itertools\ndef go(): return itertools.count()",
        {"timed out", "failed", "unreadable"},
    ),
}
FAST = ("sleep", "processes", "a daemon")


@pytest.mark.parametrize("attack", with_slow(ENDLESS, ENDLESS.keys() - set(FAST)))
def test_a_program_ends_with_all_that_it_started(attack, run_longer, no_processes_left):
    program, outcomes = ENDLESS[attack]
    test = "assert sum(go()) == 0" if "iterator" in attack else "assert go() is True"
    # by the clock three times as much: short where that is what ends it
    seconds = 0.3 if "timed out" in outcomes else 5
    result = run_longer(program, Task(("go",), "", (test,)), seconds=seconds)
    assert result.outcome in outcomes, result
    assert result.seconds < 20


@pytest.mark.slow
def test_programs_do_not_take_processes_from_one_another():
    require_sandbox()
    honest = (
        "import threading\ndef go():\n threads = [threading.Thread(target=int) for _ in range(3)]\n"
        " for t in threads: t.start()\n for t in threads: t.join()\n return True"
    )
    task = Task(("go",), "", ("assert go() is True",))
    with ThreadPoolExecutor(2) as pool:
        flood = pool.submit(run_here, ENDLESS["processes"][0], task, seconds=1)
        results = [run_here(honest, task, seconds=5) for _ in range(5)]
        assert not flood.result().passed
    assert all(result.passed for result in results), results
