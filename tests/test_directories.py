"""Watches on directories: one inotify instance for all; an event signals only the watches that it
concerns."""

import os
import shutil
import threading

import pytest

from dataplane.descriptors import readable
from dataplane.errors import PortError
from vnic.device.directories import watch_directory, watch_entries

MANY = 300  # more than a user's default limit of 128 instances


def instances() -> int:
    """inotify instances of this process."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}") == "anon_inode:inotify"
        except OSError:
            pass
    return found


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "vnic-inotify"]


@pytest.fixture
def place(tmp_path):
    """A directory with MANY entries; checks that no watch is left at the end."""
    directory = tmp_path / "names"
    directory.mkdir()
    for number in range(MANY):
        (directory / f"n{number}").touch()
    yield directory
    for each in threading.enumerate():
        if each.name == "vnic-inotify":
            each.join(60)
    assert not threads() and instances() == 0


def test_many_watches_take_one_instance(place):
    watches = [watch_directory(str(place / f"n{number}")) for number in range(MANY)]
    assert instances() == 1 and len(threads()) == 1
    (place / "n7").unlink()
    assert readable(watches[7].descriptor, 60)
    (place / "other").touch()
    (place / "n8").rename(place / "n9")  # n9 is another file now
    assert readable(watches[8].descriptor, 60) and readable(watches[9].descriptor, 60)
    assert [number for number, each in enumerate(watches) if readable(each.descriptor, 0)] == [7, 8, 9]
    watches[7].take()
    watches[7].take()  # nothing is pending
    assert not readable(watches[7].descriptor, 0)
    shutil.rmtree(place)
    assert all(readable(each.descriptor, 60) for each in watches), "the directory itself went"
    for each in watches:
        each.close()
        each.close()


def test_all_entries(place):
    watch = watch_entries(str(place))
    (place / "new").touch()
    assert readable(watch.descriptor, 60)
    watch.close()


def test_a_directory_that_comes_again(place):
    first = watch_directory(str(place / "n1"))
    shutil.rmtree(place)
    assert readable(first.descriptor, 60)
    place.mkdir()
    second = watch_directory(str(place / "n1"))
    (place / "n1").touch()
    assert readable(second.descriptor, 60)
    first.close()
    second.take()
    (place / "n1").unlink()
    assert readable(second.descriptor, 60), "the first one's end has not ended this one"
    second.close()


def test_no_such_directory(place):
    with pytest.raises(PortError, match="nowhere: cannot be watched: No such file or directory; see fs.inotify"):
        watch_directory(str(place / "nowhere" / "x"))
