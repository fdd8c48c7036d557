"""Fifty uploads of 50 MB at once, and as many downloads: the memory of the service does not grow with what is sent."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UPLOADS, SIZE = 50, 50 << 20
EACH = 2 << 20
"""Bytes of memory that an upload or a download may take while it goes on, whatever its size."""
BOUNDARY = "specnorm"


def body(number: int) -> Iterator[bytes]:
    """Yield a multipart form with a file of SIZE bytes, in pieces."""
    yield f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'.encode()
    yield f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{number}.npz"\r\n\r\n'.encode()
    piece = bytes([number]) * (1 << 20)
    for _ in range(SIZE >> 20):
        yield piece
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def peak(pid: int) -> int:
    """Return the most memory that the process ever held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10


def at_once(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_memory_stays_flat_under_fifty_large_uploads_and_downloads(machine: Any) -> None:
    service = machine.serve(worker="none")
    service.upload(machine.data)
    before, answers, names, lock = peak(service.pid), [], [], threading.Lock()
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    def send(number: int) -> None:
        answer = service.http.post("/v1/files", content=body(number), headers=headers)
        with lock:
            answers.append((answer.status_code, answer.json().get("bytes")))
            names.append(answer.json()["id"])

    def fetch(name: str) -> None:
        with service.http.stream("GET", f"/v1/files/{name}/content") as answer:
            size = sum(map(len, answer.iter_raw()))
        with lock:
            answers.append((answer.status_code, size))

    at_once([threading.Thread(target=send, args=(number,)) for number in range(UPLOADS)])
    at_once([threading.Thread(target=fetch, args=(name,)) for name in names])
    assert answers == [(200, SIZE)] * UPLOADS * 2
    grown = peak(service.pid) - before
    print(f"peak of {peak(service.pid) >> 20} MB, {grown >> 20} MB more than before {UPLOADS} uploads and downloads of {SIZE >> 20} MB")
    assert grown < UPLOADS * EACH
    service.stop()
    machine.examined()
