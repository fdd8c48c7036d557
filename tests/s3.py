"""An S3 server for the tests: moto's, in a process of its own on a loopback port."""

import socket
import subprocess
import sys
import time
from itertools import count

import httpx


class Server:
    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._numbers = count(1)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", self.url.rpartition(":")[2]]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                httpx.get(self.url, trust_env=False)
            except httpx.HTTPError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError("moto's server did not start")

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}

    def bucket(self) -> str:
        """Return the URL of a part of a new bucket."""
        name = f"bucket-{next(self._numbers)}"
        httpx.put(f"{self.url}/{name}", trust_env=False).raise_for_status()
        return f"s3://{name}/some/prefix"

    def change(self, url: str, digest: str, content: bytes) -> None:
        """Overwrite a stored file as no client of ours would."""
        httpx.put(f"{self.url}/{url.removeprefix('s3://')}/sha256/{digest}", content=content, trust_env=False).raise_for_status()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
