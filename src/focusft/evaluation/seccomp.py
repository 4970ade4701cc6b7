"""The system-call filter of the sandbox, as a classic BPF program for `bwrap --seccomp`.

Namespaces hide the host's files, processes and network devices, but some calls reach past them:
vsock sockets reach a virtual machine's host, memory files and System V segments escape the
address-space limit, and mount or user-namespace calls widen the kernel's attack surface. A
program that computes needs none of these, so they fail with EPERM.
"""

from __future__ import annotations

import errno
import platform
import struct

from focusft.errors import UserError

# name: number on x86_64, number on aarch64 (-1 where there is none).
_REFUSED: dict[str, tuple[int, int]] = {
    # Other processes' memory and descriptors.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # Memory that no limit counts.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    # Namespaces, mounts and file handles.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # Large kernel interfaces with a history of holes.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    # The machine itself.
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "iopl": (172, -1),
    "ioperm": (173, -1),
}
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
_NEW_NAMESPACES = 0x7E020000
_AF_UNIX = 1
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
# Offsets in struct seccomp_data.
_NUMBER, _ARCH, _ARGUMENT_0 = 0, 4, 16
_X32_BIT = 0x40000000


def filter_program(machine: str | None = None) -> bytes:
    """The filter, as an array of `struct sock_filter`.

    Args:
        machine: Machine type as `platform.machine()` gives it; this machine's by default.

    Raises:
        UserError: The machine type has no filter here.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise UserError(
            f"the sandbox has no system-call filter for {machine} machines; use the docker sandbox"
        )
    column, audit_arch = _ARCHITECTURES[machine]
    program = [
        _step(_LOAD, _ARCH),
        _step(_JUMP_EQUAL, audit_arch, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        # The x32 variants of the calls have numbers of their own.
        program += [_step(_JUMP_AT_LEAST, _X32_BIT, 0, 1), _step(_RETURN, _KILL)]
    # clone3 takes its flags behind a pointer that a filter cannot follow; on ENOSYS the C library
    # falls back to clone.
    program += _refuse(_CLONE3[column], errno.ENOSYS)
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number >= 0:
            program += _refuse(number, errno.EPERM)
    program += [
        _step(_JUMP_EQUAL, _CLONE[column], 0, 4),
        _step(_LOAD, _ARGUMENT_0),
        _step(_JUMP_SET, _NEW_NAMESPACES, 0, 1),
        _step(_RETURN, _FAIL | errno.EPERM),
        _step(_RETURN, _ALLOW),
        _step(_JUMP_EQUAL, _SOCKET[column], 0, 3),
        _step(_LOAD, _ARGUMENT_0),
        _step(_JUMP_EQUAL, _AF_UNIX, 1, 0),
        _step(_RETURN, _FAIL | errno.EACCES),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(program)


def _refuse(number: int, error: int) -> list[bytes]:
    return [_step(_JUMP_EQUAL, number, 0, 1), _step(_RETURN, _FAIL | error)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
