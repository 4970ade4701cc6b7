"""Attacks on the sandbox, as plain code.

`REFUSED`: each must fail inside. The code sets `breach`, or the system refuses it with an OSError
or MemoryError; any other exception is a mistake in the attack and fails the test. Names that the
test puts before the code: SECRET (a host file), HOST_FOLDER (a host folder that anyone may write
to), PORT and UDP_PORT (the test listens there on loopback), ABSTRACT (an abstract socket), PARENT
(the test's process id), and those of `PRELUDE`.

`HARMLESS` are those of them that succeed without a sandbox, which a test shows, so that being
refused means something.

`BOMBS`: each runs away, and must be contained without a trace. After the name stands what may end
it: its own end (an error that the limits give it), or the sandbox for want of time, memory, files
or output.
"""


def _sections(text: str) -> dict[str, str]:
    parts = [part.split("\n", 1) for part in text.split("## ")[1:]]
    return {name.strip(): code.strip() + "\n" for name, code in parts}


def _bombs(text: str) -> dict[str, tuple[str, set[str]]]:
    bombs = {}
    for head, code in _sections(text).items():
        name, ends = head.split(" | ")
        bombs[name] = (code, {"" if end == "own end" else end for end in ends.split(", ")})
    return bombs


PRELUDE = """
import ctypes, fcntl, os, resource, signal, socket, stat, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def put(path, text):
    file = os.open(path, os.O_WRONLY)
    os.write(file, text.encode())
def syscall(number, *arguments):
    return check(libc.syscall(number, *map(ctypes.c_long, arguments)))
"""

HARMLESS = _sections(r"""
## read a host file
breach = open(SECRET).read() == 'host secret'

## climb with dots
breach = open('../../../../../..' + SECRET).read() == 'host secret'

## read /etc/passwd
breach = bool(open('/etc/passwd').read())

## list /etc
breach = len(os.listdir('/etc')) > 5

## list the home folder
breach = os.path.isdir('/root') or os.path.isdir('/home')

## read through /proc/self/root
breach = open('/proc/self/root' + SECRET).read() == 'host secret'

## read through /proc/self/cwd
breach = open('/proc/self/cwd/../../../../..' + SECRET).read() == 'host secret'

## read through a symlink
os.chdir(HOST_FOLDER if os.path.isdir(HOST_FOLDER) else '/tmp')
os.symlink(SECRET, 'link')
breach = open('link').read() == 'host secret'

## read through a symlink made by a shell
command = ['sh', '-c', f'cat {SECRET}']
shown = subprocess.run(command, capture_output=True, text=True).stdout
breach = shown == 'host secret'

## read by a descriptor of the root
root = os.open('/', os.O_RDONLY)
file = os.open(SECRET[1:], os.O_RDONLY, dir_fd=root)
breach = os.read(file, 99) == b'host secret'

## see the test's process
breach = os.path.exists(f'/proc/{PARENT}')

## read the test's command line
breach = b'python' in open(f'/proc/{PARENT}/cmdline', 'rb').read()

## signal the test's process
os.kill(PARENT, 0)
breach = True

## open a handle of the test's process
breach = os.pidfd_open(PARENT) >= 0

## see many processes
breach = sum(name.isdigit() for name in os.listdir('/proc')) > 4

## write into a host folder
open(HOST_FOLDER + '/planted', 'w').write('x')
breach = True

## connect to the host's loopback
breach = bool(socket.create_connection(('127.0.0.1', PORT), timeout=2))

## send a datagram to the host's loopback
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
breach = s.sendto(b'x', ('127.0.0.1', UDP_PORT)) == 1

## fetch a page from the host's loopback
import urllib.request
try:
    urllib.request.urlopen(f'http://127.0.0.1:{PORT}', timeout=1)
except OSError as error:
    breach = 'timed out' in str(error)
except Exception:
    breach = True

## connect to the host's abstract socket
s = socket.socket(socket.AF_UNIX)
s.connect(chr(0) + ABSTRACT)
breach = True

## connect to the host's socket file
s = socket.socket(socket.AF_UNIX)
s.connect(HOST_FOLDER + '/socket')
breach = True

## list the host's connections
breach = len(open('/proc/net/tcp').readlines()) > 1

## listen on a port of its own
s = socket.socket()
s.bind(('127.0.0.1', 0))
s.listen()
breach = True

## open an IPv6 socket
breach = bool(socket.socket(socket.AF_INET6))

## ask the kernel for its routes
breach = bool(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))

## make a memory file
breach = os.memfd_create('x') >= 0

## make a System V memory segment
breach = check(libc.shmget(0, 4096, 0o1600)) >= 0

## make a System V message queue
breach = check(libc.msgget(0, 0o1600)) >= 0

## find the name of the host
breach = socket.gethostname() != 'sandbox'

## look into the kernel's objects
breach = bool(os.listdir('/sys/class'))
""")

REFUSED = HARMLESS | _sections(r"""
## read /etc/shadow
breach = bool(open('/etc/shadow').read())

## list top folders of the host
hidden = ('work', 'var', 'opt', 'srv', 'mnt', 'media', 'boot', 'sys', 'run', 'sbin')
breach = any(os.path.lexists('/' + name) for name in hidden)

## list local programs
breach = bool(os.listdir('/usr/local'))

## find the Docker socket
breach = any(map(os.path.exists, ('/run/docker.sock', '/var/run/docker.sock')))

## read through the first process's root
breach = open('/proc/1/root' + SECRET).read() == 'host secret'

## read through a symlink to the first process's root
os.symlink('/proc/1/root', '/tmp/link')
breach = open('/tmp/link' + SECRET).read() == 'host secret'

## read through the first process's folder
breach = open('/proc/1/cwd' + SECRET).read() == 'host secret'

## read through the parent's root
breach = open(f'/proc/{PARENT}/root' + SECRET).read() == 'host secret'

## read its environment
breach = 'FOCUSFT_TEST_SECRET' in os.environ

## read its first environment
breach = b'FOCUSFT_TEST_SECRET' in open('/proc/self/environ', 'rb').read()

## read the first process's environment
breach = b'FOCUSFT' in open('/proc/1/environ', 'rb').read()

## read the test's memory
breach = bool(open(f'/proc/{PARENT}/mem', 'rb'))

## write the test's memory
breach = bool(open(f'/proc/{PARENT}/mem', 'r+b'))

## find inherited descriptors
breach = False
for fd in range(3, 4096):
    try:
        breach = os.fstat(fd) is not None
        break
    except OSError:
        pass

## find descriptors of the first process
links = [os.readlink(f'/proc/1/fd/{fd}') for fd in os.listdir('/proc/1/fd')]
breach = any(not link.startswith(('pipe:', 'anon_inode:', 'socket:')) for link in links)

## open raw disks and memory
breach = any(map(os.path.exists, ('/dev/vda', '/dev/sda', '/dev/nvme0', '/dev/mem')))

## open a graphics or virtual machine device
breach = any(map(os.path.exists, ('/dev/kvm', '/dev/dri', '/dev/nvidia0', '/dev/fuse')))

## make a disk device
os.mknod('/tmp/disk', stat.S_IFBLK | 0o600, os.makedev(254, 0))
breach = bool(open('/tmp/disk', 'rb').read(1))

## read the kernel's memory
breach = bool(open('/proc/kcore', 'rb').read(1))

## read the kernel's log
breach = check(libc.klogctl(3, ctypes.create_string_buffer(99), 99))

## read the kernel's log device
breach = bool(open('/dev/kmsg', 'rb').read(1))

## hard-link a system file
os.link('/usr/bin/env', '/tmp/env')
breach = True

## become root
os.setuid(0)
breach = True

## become root by a set-user-id copy
import shutil
shutil.copy('/usr/bin/id', '/tmp/id')
os.chmod('/tmp/id', 0o6755)
os.chown('/tmp/id', 0, 0)
breach = subprocess.check_output(['/tmp/id', '-u']) == b'0'

## become root by su
breach = subprocess.run(['su', '-c', 'true'], capture_output=True).returncode == 0

## hold capabilities
lines = [line.split() for line in open('/proc/self/status') if line.startswith('Cap')]
held = {name: int(value, 16) for name, value in lines}
breach = bool(held['CapEff:'] or held['CapPrm:'] or held['CapAmb:'])

## gain privileges by exec
breach = 'NoNewPrivs:\t1' not in open('/proc/self/status').read()

## write into the system's libraries
open('/usr/lib/planted', 'w')
breach = True

## overwrite the interpreter
open(os.path.realpath(sys.executable), 'r+b')
breach = True

## change the interpreter's mode
os.chmod(os.path.realpath(sys.executable), 0o777)
breach = True

## rename a system folder
os.rename('/usr/lib', '/usr/old')
breach = True

## touch a system folder
os.utime('/usr/lib')
breach = True

## write a file into the root
open('/planted', 'w')
breach = True

## preload a library
open('/etc/ld.so.preload', 'w')
breach = True

## write a file into /dev
open('/dev/planted', 'w')
breach = True

## write a file into /proc
open('/proc/planted', 'w')
breach = True

## set the core pattern
put('/proc/sys/kernel/core_pattern', '|x')
breach = True

## pull the emergency key
put('/proc/sysrq-trigger', 'm')
breach = True

## map more users
put('/proc/self/uid_map', '0 0 4294967295')
breach = True

## shield itself from the memory killer
put('/proc/self/oom_score_adj', '-1000')
breach = True

## remount the root writable
breach = check(libc.mount(None, b'/', None, 32, None)) == 0

## mount a new /proc
breach = check(libc.mount(b'proc', b'/tmp', b'proc', 0, None)) == 0

## bind-mount over a folder
breach = check(libc.mount(b'/', b'/tmp', None, 4096, None)) == 0

## mount a control group
breach = check(libc.mount(b'x', b'/tmp', b'cgroup2', 0, None)) == 0

## unmount a system folder
breach = check(libc.umount2(b'/usr/lib', 2)) == 0

## mount by the new interface
breach = syscall(430, 0, 0) >= 0

## make a user namespace
breach = check(libc.unshare(0x10000000)) == 0

## make a user namespace by a command
breach = subprocess.run(['unshare', '-Ur', 'true'], capture_output=True).returncode == 0

## make a user namespace by clone
number = 56 if os.uname().machine == 'x86_64' else 220
child = syscall(number, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
if child == 0:
    os._exit(0)
breach = True

## make a user namespace by clone3
words = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, signal.SIGCHLD)
child = check(libc.syscall(435, ctypes.byref(words), 88))
if child == 0:
    os._exit(0)
breach = True

## enter another mount namespace
breach = check(libc.setns(os.open('/proc/1/ns/mnt', os.O_RDONLY), 0)) == 0

## change the root
os.chroot('/tmp')
breach = True

## open a file by its handle
handle, mount = ctypes.create_string_buffer(256), ctypes.c_int()
handle[0] = 128
breach = check(libc.name_to_handle_at(-100, b'/', handle, ctypes.byref(mount), 0)) == 0

## connect to the loopback over IPv6
breach = bool(socket.create_connection(('::1', PORT), timeout=2))

## connect to the internet
breach = bool(socket.create_connection(('8.8.8.8', 53), timeout=2))

## resolve a name
breach = bool(socket.getaddrinfo('example.com', 80))

## open a raw socket
breach = bool(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))

## open a packet socket
breach = bool(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))

## reach the machine's hypervisor
breach = bool(socket.socket(socket.AF_VSOCK))

## use the kernel's crypto sockets
breach = bool(socket.socket(socket.AF_ALG, 5))

## see network devices
names = [line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line]
breach = names != ['lo']

## kill the test's process
os.kill(PARENT, signal.SIGKILL)
breach = True

## kill every process
os.kill(-1, signal.SIGKILL)
breach = False

## kill the first process
os.kill(1, signal.SIGKILL)
time.sleep(0.2)
breach = False

## interrupt the first process
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSTOP):
    os.kill(1, number)
time.sleep(0.2)
breach = False

## signal the caller's process group
os.killpg(os.getpgid(PARENT), 0)
breach = True

## trace the first process
breach = check(libc.ptrace(16, 1, 0, 0)) == 0

## trace itself
breach = check(libc.ptrace(0, 0, 0, 0)) == 0

## trace a child
child = os.fork()
if child == 0:
    time.sleep(1)
    os._exit(0)
breach = check(libc.ptrace(16, child, 0, 0)) == 0

## read another process's memory
breach = check(libc.process_vm_readv(1, None, 0, None, 0, 0)) >= 0

## take a descriptor of the first process
breach = syscall(438, os.pidfd_open(1), 0, 0) >= 0

## raise its priority
os.nice(-5)
breach = True

## run in real time
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
breach = True

## raise its limits
breach = False
for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    try:
        resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        breach = True
    except (OSError, ValueError):
        pass

## type into the terminal
breach = os.open('/dev/tty', os.O_RDWR) >= 0

## set the clock
time.clock_settime(time.CLOCK_REALTIME, 0)
breach = True

## set the host's name
socket.sethostname('planted')
breach = True

## restart the machine
breach = check(libc.reboot(0)) == 0

## load a program into the kernel
breach = syscall(321 if os.uname().machine == 'x86_64' else 280, 0, 0, 0) >= 0

## open an asynchronous ring
breach = syscall(425, 1, 0) >= 0

## watch performance counters
breach = syscall(298 if os.uname().machine == 'x86_64' else 241, 0, 0, -1, -1, 0) >= 0

## read the kernel's key ring
breach = syscall(250 if os.uname().machine == 'x86_64' else 219, 0, -3, 0) >= 0

## write a file of a terabyte
os.truncate(os.open('/tmp/x', 66), 1 << 40)
breach = True

## reserve a file of a terabyte
os.posix_fallocate(os.open('/tmp/x', 66), 0, 1 << 40)

## reserve a terabyte of memory
breach = len(bytearray(1 << 40)) > 0

## lock its memory
breach = check(libc.mlockall(3)) == 0

## leave a core file
child = os.fork()
if child == 0:
    os.abort()
breach = os.WCOREDUMP(os.waitpid(child, 0)[1])
""")

BOMBS = _bombs(r"""
## fork bomb | memory, time
import os
while True:
    try:
        os.fork()
    except OSError:
        pass

## fork bomb of a shell | memory, own end, time
import os
os.execvp('bash', ['bash', '-c', 'b() { b | b & }; b; while :; do :; done'])

## thread bomb | time
import threading, time
while True:
    try:
        threading.Thread(target=time.sleep, args=(99,)).start()
    except RuntimeError:
        pass

## program bomb | time
import subprocess
while True:
    try:
        subprocess.Popen(['sleep', '99'])
    except OSError:
        pass

## daemon bomb | time
import os
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            while True:
                pass
    except OSError:
        pass

## zombies | time
import os
while True:
    try:
        if os.fork() == 0:
            os._exit(0)
    except OSError:
        pass

## growing list | memory, own end, time
x = []
while True:
    x.append(bytes(1 << 20))

## doubling string | memory, own end, time
x = 'x'
while True:
    x += x

## memory of many processes | memory, time
import os, time
for _ in range(8):
    if os.fork() == 0:
        x = os.urandom(1 << 20) * 100
        time.sleep(99)
time.sleep(99)

## memory of processes whose first thread has ended | memory
import ctypes, os, threading, time
def hold():
    # Not before the first thread is gone.
    time.sleep(0.2)
    x = os.urandom(1 << 20) * 100
    time.sleep(99)
for _ in range(8):
    if os.fork() == 0:
        threading.Thread(target=hold).start()
        ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)
time.sleep(99)

## mapped memory | memory, own end, time
import mmap
x = []
while True:
    m = mmap.mmap(-1, 1 << 24)
    m.write(bytes(1 << 24))
    x.append(m)

## memory held against MemoryError | memory, own end, time
x = []
size = 1 << 24
while True:
    try:
        x.append(bytearray(size))
    except MemoryError:
        size = max(1, size // 2)

## endless recursion | memory, own end, time
import sys
sys.setrecursionlimit(10**9)
def f():
    f()
f()

## full /tmp | own end
n = 0
while True:
    n += 1
    open(f'/tmp/{n}', 'wb').write(bytes(1 << 22))

## full /dev/shm | own end
n = 0
while True:
    n += 1
    open(f'/dev/shm/{n}', 'wb').write(bytes(1 << 22))

## one large file | own end
f = open('/tmp/x', 'wb')
while True:
    f.write(bytes(1 << 20))

## empty files | files, own end
n = 0
while True:
    n += 1
    open(f'/tmp/{n}', 'w').close()

## nested folders | files, own end
import os
while True:
    os.mkdir('d')
    os.chdir('d')

## open files | own end
x = []
while True:
    x.append(open('/dev/null'))

## full pipes | own end
import os, time
while True:
    r, w = os.pipe()
    os.set_blocking(w, False)
    os.write(w, bytes(1 << 20))

## endless output | output, time
while True:
    print('x' * 10000)

## endless line | output, time
import os
while True:
    os.write(1, b'x' * 65536)

## endless errors | output, time
import os
while True:
    os.write(2, b'x' * 65536)

## endless output of children | output, time
import os
for _ in range(5):
    if os.fork() == 0:
        break
while True:
    os.write(1, b'\x00\xff' * 30000)

## endless loop | time
while True:
    pass

## endless sleep | time
import time
time.sleep(10**6)

## endless calculation in C | memory, own end, time
9 ** 9 ** 9 ** 9

## endless regular expression | time
import re
re.match('(a+)+$', 'a' * 64 + 'b')

## deaf to signals | time
import signal
for n in range(1, 65):
    try:
        signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass

## stopped | time
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)

## deadlock | time
import threading
lock = threading.Lock()
lock.acquire()
lock.acquire()

## waiting for input | time
import os
r, w = os.pipe()
os.read(r, 1)

## closed streams | time
import os
os.closerange(0, 4096)
while True:
    pass

## another program | time
import os
os.execvp('sleep', ['sleep', '999'])

## daemon that holds the output | own end
import os, sys, time
if os.fork() == 0:
    os.setsid()
    time.sleep(999)
sys.exit(0)

## daemon of a daemon | own end
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 99)
        time.sleep(999)
    os._exit(0)
os.wait()

## exit handler | time
import atexit
def f():
    while True:
        pass
atexit.register(f)

## thread that stays | time
import threading, time
threading.Thread(target=time.sleep, args=(999,)).start()

## crash | own end
import ctypes
ctypes.string_at(0)

## its own process group killed | own end
import os, signal
os.killpg(0, signal.SIGKILL)
""")
