"""A filter of system calls for x86_64, as the bytes that bubblewrap loads. Standard library only.

It is the second wall: namespaces take files, network and processes away, and the filter takes away
the calls with which a program could build namespaces of its own, hold memory that no limit counts,
or reach code of the kernel that no program of a benchmark needs.
"""

from __future__ import annotations

import struct

DENIED = {
    # other processes
    "ptrace": 101,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    # mounts and namespaces
    "mount": 165,
    "umount2": 166,
    "pivot_root": 155,
    "chroot": 161,
    "unshare": 272,
    "setns": 308,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "mount_setattr": 442,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "fanotify_init": 300,
    "quotactl": 179,
    "quotactl_fd": 443,
    # the machine
    "sethostname": 170,
    "setdomainname": 171,
    "reboot": 169,
    "kexec_load": 246,
    "kexec_file_load": 320,
    "init_module": 175,
    "finit_module": 313,
    "delete_module": 176,
    "swapon": 167,
    "swapoff": 168,
    "acct": 163,
    "settimeofday": 164,
    "clock_settime": 227,
    "adjtimex": 159,
    "clock_adjtime": 305,
    "syslog": 103,
    "iopl": 172,
    "ioperm": 173,
    "modify_ldt": 154,
    "vhangup": 153,
    "personality": 135,
    "uselib": 134,
    "lookup_dcookie": 212,
    # the kernel's larger doors
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "bpf": 321,
    "perf_event_open": 298,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    # what all programs of the machine, or of the user, share
    "io_setup": 206,
    "inotify_init": 253,
    "inotify_init1": 294,
    # memory that no limit counts
    "memfd_create": 319,
    "memfd_secret": 447,
    "shmget": 29,
    "shmat": 30,
    "shmctl": 31,
    "shmdt": 67,
    "semget": 64,
    "msgget": 68,
    "msgsnd": 69,
    "mq_open": 240,
    # the network: a second lock beside a network namespace of its own; socketpair stays
    "socket": 41,
    "move_pages": 279,
    "migrate_pages": 256,
}
"""Calls that fail with EPERM, by their numbers on x86_64."""

_LAST_KNOWN = 462  # mseal, of Linux 6.10: what is newer was not looked at
_CLONE, _CLONE3, _IOCTL, _PRCTL = 56, 435, 16, 157
_SET_DEATH_SIGNAL = 1  # of prctl
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEWNS, -CGROUP, -UTS, -IPC, -USER, -PID, -NET
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_ARCHITECTURE_X86_64 = 0xC000003E
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050000 | 1, 0x00050000 | 38
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data


def filter_bytes() -> bytes:
    """Return the filter: an array of ``struct sock_filter``.

    A call of another architecture (32 bit, x32) ends the process: numbers mean other calls there.
    ``clone3`` is unknown to the program, since its flags lie in memory where no filter can read
    them; the C library then takes ``clone``, whose flags are looked at. The order to die with who
    started it, which bubblewrap gives, cannot be taken back.
    """
    program = [
        _load(_ARCHITECTURE),
        _jump(_EQUAL, _ARCHITECTURE_X86_64, 1, 0),
        _give(_KILL),
        _load(_NUMBER),
        *_when(_AT_LEAST, _X32, _KILL),
        *_when(_AT_LEAST, _LAST_KNOWN + 1, _ENOSYS),
        *_when(_EQUAL, _CLONE3, _ENOSYS),
    ]
    for number in sorted(DENIED.values()):
        program += _when(_EQUAL, number, _EPERM)
    program += [
        _jump(_EQUAL, _CLONE, 0, 4),
        _load(_argument(0)),
        *_when(_ANY_BIT, _NEW_NAMESPACE, _EPERM),
        _give(_ALLOW),
        _jump(_EQUAL, _PRCTL, 0, 4),
        _load(_argument(0)),
        *_when(_EQUAL, _SET_DEATH_SIGNAL, _EPERM),
        _give(_ALLOW),
        _jump(_EQUAL, _IOCTL, 0, 5),
        _load(_argument(1)),
        *_when(_EQUAL, _TIOCSTI, _EPERM),
        *_when(_EQUAL, _TIOCLINUX, _EPERM),
        _give(_ALLOW),
    ]
    return b"".join(program)


def _argument(index: int) -> int:
    """Return the offset of the lower half of an argument."""
    return 16 + 8 * index


def _load(offset: int) -> bytes:
    return struct.pack("HBBI", _LOAD, 0, 0, offset)


def _jump(test: int, value: int, yes: int, no: int) -> bytes:
    return struct.pack("HBBI", test, yes, no, value)


def _give(what: int) -> bytes:
    return struct.pack("HBBI", _RETURN, 0, 0, what)


def _when(test: int, value: int, what: int) -> list[bytes]:
    return [_jump(test, value, 0, 1), _give(what)]
