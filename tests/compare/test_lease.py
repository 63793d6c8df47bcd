"""Locks on a shared folder: one holder at a time, however it ends."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from balora.compare import lease as leases
from balora.compare.lease import Lease, is_held
from support.killing import every_kill

RACE = """
import os, pathlib, sys, time
from balora.compare.lease import Lease
lock, log, go = map(pathlib.Path, sys.argv[1:4])
print("ready", flush=True)
while not go.exists():
    pass
mine = 0
while mine < 20:
    lease = Lease.take(lock)
    if lease is None:
        continue
    os.mkdir(log)  # fails where another is at work
    os.rmdir(log)
    lease.release()
    mine += 1
"""


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "cell.lease"


def written_by(lock, number, *, place, processes, age=0.0):
    """Write a lock's file as a process of some machine left it."""
    lock.mkdir(exist_ok=True)
    file = lock / str(number)
    file.write_text(json.dumps({"place": place, "processes": processes}))
    os.utime(file, (time.time() - age,) * 2)
    return file


def test_one_at_a_time_until_it_is_released(lock):
    assert not is_held(lock)
    first = Lease.take(lock)
    assert first is not None
    assert Lease.take(lock) is None
    assert is_held(lock)
    first.release()
    assert not is_held(lock)
    second = Lease.take(lock)
    assert second is not None
    assert second.file.name == "2"
    second.release()


def test_many_processes_never_hold_it_at_once(lock, tmp_path):
    go = tmp_path / "go"
    command = [sys.executable, "-c", RACE, str(lock), str(tmp_path / "at-work"), str(go)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    go.touch()
    for racer in racers:
        racer.communicate(timeout=60)
    assert [racer.returncode for racer in racers] == [0] * 6
    assert len(os.listdir(lock)) == 120


def test_a_dead_process_of_this_machine_holds_nothing_and_a_living_one_does(lock):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    lease = Lease.take(lock)
    lease.names(child.pid)
    # without a heartbeat for a day, as after a suspension: the process is there all the same
    os.utime(lease.file, (time.time() - 86400,) * 2)
    assert is_held(lock)
    child.kill()
    child.communicate()
    assert not is_held(lock)
    other = Lease.take(lock)
    assert other is not None
    assert not lease.is_held()
    lease.release()  # of one that was taken over: it stays the other's
    assert is_held(lock)
    other.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_holder_that_is_killed_at_any_write_holds_nothing(lock, tmp_path):
    def hold():
        Lease.take(lock).names(os.getpid(), os.getpid())

    kills = 0
    for kill, killed in every_kill(hold, tmp_path):
        kills += killed
        lease = Lease.take(lock)
        assert lease is not None, kill
        lease.release()
        shutil.rmtree(lock)
    assert kills >= 5


def test_where_a_file_system_has_no_links_the_lock_is_taken_all_the_same(lock, monkeypatch):
    def link(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    first = Lease.take(lock)
    assert Lease.take(lock) is None
    assert is_held(lock)
    first.release()
    Lease.take(lock).release()
    assert sorted(os.listdir(lock)) == ["1", "2"]


def test_a_number_that_another_process_has_now_is_not_the_holder(lock):
    pid, since = leases._identity(os.getpid()).split(" ")
    written_by(lock, 1, place=leases._place(), processes=[f"{pid} {since}"])
    assert is_held(lock)
    written_by(lock, 1, place=leases._place(), processes=[f"{pid} {int(since) + 1}"])
    assert not is_held(lock)


@pytest.mark.parametrize(("age", "held"), [(0, True), (100, True), (300, False)])
def test_of_another_machine_the_heartbeat_tells(lock, age, held):
    written_by(lock, 1, place="another boot", processes=["1 1"], age=age)
    assert is_held(lock) is held
    assert (Lease.take(lock) is None) is held


def test_the_age_is_by_the_clock_of_the_file_system(lock, monkeypatch):
    written_by(lock, 1, place="another boot", processes=["1 1"])
    for wrong in (time.time() + 86400, 0.0):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: wrong)
        assert is_held(lock)


def test_what_cannot_be_read_is_held_until_it_is_stale(lock):
    lock.mkdir()
    for text in ("", "{", "[]", '{"place": "x"}'):
        (lock / "1").write_text(text)
        assert is_held(lock)
        os.utime(lock / "1", (time.time() - 300,) * 2)
        assert not is_held(lock)


def test_the_holder_renews_it_and_learns_that_it_was_taken(lock, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    lost = []
    first = Lease.take(lock)
    second = Lease.share(first.file, on_loss=lambda: lost.append(True))
    os.utime(first.file, (1, 1))
    end = time.monotonic() + 10
    while first.file.stat().st_mtime == 1:
        assert time.monotonic() < end
    written_by(lock, 2, place="another boot", processes=["1 1"])
    while not (first.is_lost and lost):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert second.is_lost


def test_a_folder_that_is_removed_under_its_holder_is_lost(lock, monkeypatch):
    lease = Lease.take(lock)
    lease.file.unlink()
    lock.rmdir()
    lease.release()
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    lease = Lease.take(lock)
    lease.file.unlink()
    end = time.monotonic() + 10
    while not lease.is_lost:
        assert time.monotonic() < end
