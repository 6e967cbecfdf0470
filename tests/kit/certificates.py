"""Certificates for tests of TLS: an authority, a server for localhost and 127.0.0.1, and clients. Made by `openssl`."""

import subprocess
from pathlib import Path

__all__ = ["Authority"]

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


class Authority:
    """Makes the directories that `tls-creds-x509` takes."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = name
        self.cert = folder / f"{name}.pem"
        self.key = folder / f"{name}-key.pem"
        _openssl("req", "-x509", *_KEY, "-keyout", self.key, "-out", self.cert, "-days", "30", "-subj", f"/CN={name}")

    def server(self) -> Path:
        """A directory with what a server needs."""
        return self._issue("server", "/O=aioblock/CN=server", "subjectAltName=DNS:localhost,IP:127.0.0.1")

    def client(self, name: str = "client") -> Path:
        """A directory with what a client of that name needs; its subject is CN=name,O=aioblock."""
        return self._issue("client", f"/O=aioblock/CN={name}", "extendedKeyUsage=clientAuth", name)

    def stranger(self) -> Path:
        """A directory with what a client needs that has no certificate of its own."""
        folder = self._folder / f"{self._name}-stranger"
        folder.mkdir()
        (folder / "ca-cert.pem").symlink_to(self.cert)
        return folder

    def _issue(self, kind: str, subject: str, extension: str, name: str = "") -> Path:
        folder = self._folder / f"{self._name}-{name or kind}"
        folder.mkdir()
        request, extensions = folder / "request.pem", folder / "extensions"
        extensions.write_text(extension)
        key, cert = folder / f"{kind}-key.pem", folder / f"{kind}-cert.pem"
        _openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", subject)
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self.key, "-CAcreateserial", "-days", "30",
            "-extfile", extensions, "-out", cert,
        )  # fmt: skip
        (folder / "ca-cert.pem").symlink_to(self.cert)
        return folder


def _openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
