"""The command ``fed-distill serve`` in a process of its own, for tests with real sockets."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading


@contextlib.contextmanager
def served(folder):
    """Run ``fed-distill serve`` on a free port; yield the process, its address and a list of its log lines."""
    command = [sys.executable, "-m", "fed_distill.cli.main", "serve", str(folder), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            lines, address = [], None
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"http://([\d.]+):(\d+)", line):
                    address = found[1], int(found[2])
                    break
            assert address, "".join(lines)
            reader = threading.Thread(target=lambda: lines.extend(process.stderr))
            reader.start()
            yield process, address, lines
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            reader.join()
        finally:
            process.kill()


def answer_of(connection):
    """All bytes until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)
