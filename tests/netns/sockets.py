"""Plain sockets for the tests.

serve PORT                  answers each datagram and each line on a connection with the address that it came from;
                            prints a JSON line for each
same_port COUNT PORT SERVER SERVER_PORT
                            from COUNT addresses (10.0.101.1...) but one port, by UDP and by TCP at once; prints a JSON
                            object of what the server says to each
hairpin PORT SERVER SERVER_PORT
                            opens mappings of PORT by UDP and TCP, prints them as one JSON line, then serves on them
ask UDP|TCP ADDRESS PORT    prints the answer of `serve` or `hairpin`
"""

import json
import socket
import socketserver
import sys
import threading

socket.setdefaulttimeout(10)


def line(**fields):
    print(json.dumps(fields), flush=True)


class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        data, answer = self.request
        answer.sendto(f"{self.client_address[0]}:{self.client_address[1]}".encode(), self.client_address)
        line(protocol="udp", source="%s:%d" % self.client_address, length=len(data))


class Line(socketserver.StreamRequestHandler):
    def handle(self):
        seen = "%s:%d" % self.client_address
        while self.rfile.readline():
            self.wfile.write(f"{seen}\n".encode())
            line(protocol="tcp", source=seen)


class TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 256
    daemon_threads = True

    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


def serve(port):
    udp = socketserver.UDPServer(("0.0.0.0", port), Datagram)
    tcp = TcpServer(("0.0.0.0", port), Line)
    threading.Thread(target=tcp.serve_forever, daemon=True).start()
    udp.serve_forever()


def connect(kind, source, target):
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if source:
        sock.bind(source)
    sock.connect(target)
    return sock


def question(sock, text=b"?"):
    sock.send(text + b"\n")
    return answer(sock, text)


def answer(sock, text=b"?"):
    """A datagram is asked once more if it is lost, as any program does that uses UDP on a busy machine."""
    datagram = sock.type == socket.SOCK_DGRAM
    for last in [False, False, True] if datagram else [True]:
        sock.settimeout(10 if last else 2)
        try:
            return sock.recv(100).decode().strip()
        except TimeoutError:
            if last:
                raise
            print("no answer, asked again", file=sys.stderr)
            sock.send(text + b"\n")


def same_port(count, port, server):
    answers = {}
    for name, kind in [("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM)]:
        sockets = [connect(kind, (f"10.0.101.{i}", port), server) for i in range(1, count + 1)]
        for sock in sockets:
            sock.send(b"?\n")
        answers[name] = [answer(sock) for sock in sockets]
        # Once more, from the last to the first: the mappings must be stable.
        again = [question(sock) for sock in reversed(sockets)]
        assert again[::-1] == answers[name], "a mapping has moved"
    print(json.dumps(answers))


def hairpin(port, server):
    datagrams = connect(socket.SOCK_DGRAM, ("0.0.0.0", port), server)
    stream = connect(socket.SOCK_STREAM, ("0.0.0.0", port), server)
    line(udp=question(datagrams), tcp=question(stream))
    datagrams.close()
    serve(port)


def ask(kind, target):
    kind = socket.SOCK_DGRAM if kind == "UDP" else socket.SOCK_STREAM
    print(question(connect(kind, None, target)))


command, arguments = sys.argv[1], sys.argv[2:]
if command == "serve":
    serve(int(arguments[0]))
elif command == "same_port":
    same_port(int(arguments[0]), int(arguments[1]), (arguments[2], int(arguments[3])))
elif command == "hairpin":
    hairpin(int(arguments[0]), (arguments[1], int(arguments[2])))
elif command == "ask":
    ask(arguments[0], (arguments[1], int(arguments[2])))
else:
    sys.exit(f"no command {command}")
