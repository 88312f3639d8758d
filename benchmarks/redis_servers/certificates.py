"""Certificates for TLS between Redis servers and clients, made with openssl.

Contains: an authority, a server's and a client's certificate. Must not depend on: servers.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


class MissingError(Exception):
    """This machine lacks a program."""


@dataclass(frozen=True)
class Certificates:
    """An authority, a server's certificate for 127.0.0.1, and a client's with an encrypted key."""

    folder: Path
    key_word: str = "of the key"

    def path(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.folder / name)

    def client_options(self) -> dict[str, str]:
        """Return redis-py's options for the client's certificate."""
        return {
            "ssl_ca_certs": self.path("ca.crt"),
            "ssl_certfile": self.path("client.crt"),
            "ssl_keyfile": self.path("client.key"),
            "ssl_password": self.key_word,
        }

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        """Make all certificates with the openssl command. Raises `MissingError`."""
        if shutil.which("openssl") is None:
            raise MissingError("there is no openssl on PATH to make certificates: apt-get install openssl")
        made = cls(folder)
        run = functools.partial(subprocess.run, cwd=folder, check=True, capture_output=True)
        new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        run([*new, "-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority"])
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        for name in ("server", "client"):
            run([*new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"])
            run(
                [
                    "openssl",
                    "x509",
                    "-req",
                    "-in",
                    f"{name}.csr",
                    "-CA",
                    "ca.crt",
                    "-CAkey",
                    "ca.key",
                    "-days",
                    "2",
                ]
                + ["-CAcreateserial", "-out", f"{name}.crt", "-extfile", "names"]
            )
        run(
            ["openssl", "pkcs8", "-topk8", "-in", "client.key", "-out", "locked.key"]
            + ["-passout", f"pass:{made.key_word}"]
        )
        (folder / "locked.key").replace(folder / "client.key")
        return made
