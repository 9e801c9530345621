"""The services of registry/compose.yaml as processes of this machine.

What is taken from compose.yaml, example.env, Caddyfile and mlflow.service: commands, environment and configuration,
with the addresses of this machine. PostgreSQL and Caddy are Debian's; moto's server stands for the S3-compatible store.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet

from tests.registry.test_files import COMPOSE, REGISTRY

MLFLOW = COMPOSE["services"]["mlflow"]
ADDRESS = "127.0.0.1"
_DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
PATH = os.pathsep.join([*map(str, _DEBIAN), str(Path(sys.executable).parent), os.environ["PATH"]])
_PROGRAMS = (
    "initdb",
    "postgres",
    "pg_isready",
    "pg_dump",
    "pg_restore",
    "psql",
    "aws",
    "moto_server",
    "sqlite3",
    "caddy",
)


def missing() -> list[str]:
    """What a deployment needs and this machine lacks."""
    lacking = [name for name in _PROGRAMS if shutil.which(name, path=PATH) is None]
    lacking += [name for name in ("flask_wtf", "psycopg", "boto3") if importlib.util.find_spec(name) is None]
    if os.geteuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        lacking.append("a user `postgres`, as PostgreSQL refuses to run as root")
    return lacking


class Deployment:
    """Secrets and addresses of one deployment, and its services as context managers.

    Args:
        folder: Gets logs, and is where the services run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lines = (REGISTRY / "example.env").read_text().splitlines()
        example = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
        self.database_port, objects, mlflow, proxy = free_ports(4)
        self.values = {name: secrets.token_hex(16) for name in example} | {"DOMAIN": f"localhost:{proxy}"}
        self.values["WEBHOOK_ENCRYPTION_KEY"] = Fernet.generate_key().decode()
        self.objects = f"http://{ADDRESS}:{objects}"
        self.inside = f"http://{ADDRESS}:{mlflow}"
        """MLflow without the proxy."""
        self.uri = f"https://{self.values['DOMAIN']}"
        self.authority = folder / "authority.crt"
        """The certificate that clients have to trust, which `proxy` writes."""
        self._addresses = {
            "@postgres/": f"@{ADDRESS}:{self.database_port}/",
            "http://objects:8333": self.objects,
            "mlflow:5000": f"{ADDRESS}:{mlflow}",
            f"{ADDRESS}:5000": f"{ADDRESS}:{mlflow}",
            "--host=0.0.0.0": f"--host={ADDRESS}",
            "--port=5000": f"--port={mlflow}",
            "--workers=2": "--workers=1",  # each takes half a minute of a core to start
        }

    def here(self, text: str) -> str:
        """A text of the files, with our values for its variables and our addresses."""
        for theirs, ours in self._addresses.items():
            text = text.replace(theirs, ours)
        return re.sub(r"\$\{(\w+)(?::\?)?\}", lambda match: self.values[match[1]], text)

    @property
    def environment(self) -> dict[str, str]:
        """That of the service `mlflow`."""
        return {name: self.here(value) for name, value in MLFLOW["environment"].items()}

    @property
    def database(self) -> str:
        return self.environment["MLFLOW_BACKEND_STORE_URI"]

    @property
    def bucket(self) -> str:
        return self.environment["MLFLOW_ARTIFACTS_DESTINATION"]

    def tool(self, *command: str | Path, **environment: str) -> str:
        """What a program prints, run by an operator, who has the keys of the store."""
        keys = {name: value for name, value in self.environment.items() if name.startswith("AWS_")}
        done = subprocess.run(
            command, env=os.environ | {"PATH": PATH} | keys | environment, capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command[0], done.stdout, done.stderr)
        return done.stdout.strip()

    def sql(self, command: str) -> str:
        maintenance = f"{self.database.rpartition('/')[0]}/postgres"
        database = maintenance if command.endswith("database mlflow") else self.database
        return self.tool("psql", database, "--tuples-only", "--no-align", "--command", command)

    def aws(self, *arguments: str) -> str:
        return self.tool("aws", "--endpoint-url", self.objects, *arguments)

    @contextlib.contextmanager
    def postgres(self) -> Iterator[None]:
        """A cluster of its own. Not in the folder, which may be closed to the user that it runs as under root."""
        folder = Path(tempfile.mkdtemp(prefix="sanitize-postgres-", dir="/tmp"))
        options: dict[str, Any] = {"cwd": folder, "env": os.environ | {"PATH": PATH}}
        password = folder / "password"
        password.write_text(self.values["POSTGRES_PASSWORD"])
        if os.geteuid() == 0:
            options |= {"user": "postgres", "group": "postgres", "extra_groups": []}
            for path in (folder, password):
                shutil.chown(path, "postgres", "postgres")
        initdb = ["initdb", f"--pgdata={folder}/data", "--username=mlflow", f"--pwfile={password}", "--locale=C"]
        server = ["postgres", "-D", f"{folder}/data", "-p", str(self.database_port), "-c", "fsync=off"]
        server += ["-c", f"listen_addresses={ADDRESS}", "-c", "unix_socket_directories="]
        try:
            subprocess.run(
                [*initdb, "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"],
                check=True, capture_output=True, **options,
            )  # fmt: skip
            asked = ["pg_isready", "--quiet", f"--host={ADDRESS}", f"--port={self.database_port}"]
            with self._running(server, lambda: subprocess.run(asked, env=options["env"]).returncode == 0, **options):
                self.sql("create database mlflow")
                yield
        finally:
            shutil.rmtree(folder)

    @contextlib.contextmanager
    def object_store(self) -> Iterator[None]:
        command = ["moto_server", "-H", ADDRESS, "-p", self.objects.rpartition(":")[2]]
        with self._running(command, lambda: answers(f"{self.objects}/moto-api/"), env=os.environ | {"PATH": PATH}):
            self.aws("s3", "mb", self.bucket)
            yield

    @contextlib.contextmanager
    def mlflow(self, command: list[str]) -> Iterator[None]:
        """The server as `command` starts it, with one worker."""
        words = self.here(re.sub(r" (--(?:host|port|workers)) ", r" \1=", " ".join(command))).split()
        assert Path(words[0]).name == "mlflow"
        auth = self.folder / "basic_auth.ini"
        auth.write_text(self.here(COMPOSE["configs"]["auth"]["content"]))
        environment = os.environ | self.environment | {"MLFLOW_AUTH_CONFIG_PATH": str(auth)}
        ours = [sys.executable, "-m", "mlflow", *words[1:]]
        with self._running(ours, lambda: answers(f"{self.inside}/health"), env=environment):
            yield

    @contextlib.contextmanager
    def proxy(self) -> Iterator[None]:
        """Caddy, with an authority of its own: nobody signs certificates of `localhost`."""
        ours = "{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n}\n"
        file = self.folder / "Caddyfile"
        file.write_text(ours + self.here((REGISTRY / "Caddyfile").read_text()))
        made = self.folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        homes = {"XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        environment = os.environ | homes | {"DOMAIN": self.values["DOMAIN"]}
        command = ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]
        with self._running(command, lambda: made.exists() and speaks_tls(self.uri, made), env=environment):
            shutil.copy(made, self.authority)
            yield

    @contextlib.contextmanager
    def _running(self, command: list[str], ready: Callable[[], bool], **options: Any) -> Iterator[None]:
        name = "mlflow" if "mlflow" in command else command[0]
        end = signal.SIGINT if name == "postgres" else signal.SIGTERM  # it waits for its clients at SIGTERM
        file = self.folder / f"{name}.log"
        with file.open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, **({"cwd": self.folder} | options)
            )
        try:
            deadline = time.monotonic() + 300
            while not ready():
                assert process.poll() is None and time.monotonic() < deadline, file.read_text()
                time.sleep(0.1)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, end)
            process.wait(60)


def answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(url, timeout=2).close()
        return True
    return False


def speaks_tls(url: str, authority: Path) -> bool:
    host, port = url.removeprefix("https://").split(":")
    trust = ssl.create_default_context(cafile=authority)
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, int(port)), timeout=2) as plain,
        trust.wrap_socket(plain, server_hostname=host),
    ):
        return True
    return False


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((ADDRESS, 0))
        return [one.getsockname()[1] for one in sockets]
