"""A service manager in small: holds listening sockets, and passes them to the program that it starts.

hold_sockets.py ADDRESS PORT GO COMMAND...

Each time the file GO is there it is removed, and COMMAND is started, with a socket that listens on ADDRESS and PORT as
its first passed descriptor; then come one that listens elsewhere, and one of UDP. When COMMAND ends it is started
again, once GO is there. Signals are for COMMAND alone.
"""

import os
import signal
import socket
import sys
import time

FIRST = 3


def start(command, sockets):
    # Above all that are to be taken, so that none is overwritten before it was copied.
    copies = [os.dup2(held.fileno(), 100 + place) for place, held in enumerate(sockets)]
    for place, copy in enumerate(copies):
        os.dup2(copy, FIRST + place, inheritable=True)
        os.close(copy)
    for ended in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(ended, signal.SIG_DFL)
    environment = dict(os.environ, LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sockets)))
    os.execvpe(command[0], command, environment)


def main(address, port, go, *command):
    wanted = socket.create_server((address, int(port)), backlog=128)
    unwanted = socket.create_server(("127.0.0.1", 0))
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for ignored in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    while True:
        while not os.path.exists(go):
            time.sleep(0.005)
        os.unlink(go)
        child = os.fork()
        if child == 0:
            start(command, [wanted, unwanted, other])
        os.waitpid(child, 0)


main(*sys.argv[1:])
