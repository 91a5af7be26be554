"""Every setting of the server, read once: options of the command line over environment variables
over the file over defaults. Nothing else reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml


class SettingError(Exception):
    """A setting has a bad value; the text is one line that names it and the mend."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What `lakemesh serve` was told. Durations are seconds, sizes bytes."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    grpc_edge: str = "grpcio"
    data_dir: Path = Path(".lakemesh")
    agents: tuple[str, ...] = ()
    builtin_agents: bool = True
    default_agent: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    concurrent_calls: int = 4096
    drain_seconds: float = 12.0
    trust_forwarded: bool = False
    postgres_dsn: str = ""
    postgres_host: str = ""
    """PGHOST, set for an app with Lakebase: libpq reads the rest of its variables itself."""
    warm_embedder: bool = True
    """Load the embedder once the port is open; else with the first text (0 saves its memory)."""
    log_level: str = "info"
    telemetry_enabled: bool = True
    telemetry_sample_rate: float = 1.0
    zerobus_batch_size: int = 1000
    zerobus_flush_interval: float = 10.0
    catalog: str = "main"
    schema: str = "agents"
    environment: str = ""
    databricks_app_name: str = ""

    @classmethod
    def load(
        cls,
        options: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] = os.environ,
        file: Path | None = None,
    ) -> Settings:
        """Settings from (strongest first) options, environment, file, defaults.

        `options` are keyed by field name; None means not given. Raises SettingError.
        """
        given: dict[str, tuple[Any, str]] = {}
        known = {field.name for field in fields(cls)}
        path = file or (
            Path(environ["LAKEMESH_CONFIG"]) if environ.get("LAKEMESH_CONFIG") else None
        )
        if path is not None:
            for name, value in _read_file(path).items():
                if name not in known:
                    raise SettingError(f"{path}: {name} is not a setting")
                given[name] = (value, f"{name} in {path}")
        for name in sorted(known):
            variable = _VARIABLES.get(name, f"LAKEMESH_{name.upper()}")
            if environ.get(variable, "") != "":
                given[name] = (environ[variable], variable)
        if environ.get("DATABRICKS_APP_PORT"):
            given["port"] = (environ["DATABRICKS_APP_PORT"], "DATABRICKS_APP_PORT")
            given["host"] = ("0.0.0.0", "DATABRICKS_APP_PORT")  # noqa: S104 - the proxy is outside
        if environ.get("DATABRICKS_APP_NAME") and "trust_forwarded" not in given:
            # Databricks' proxy sets these headers and strips what a caller sent under their names.
            given["trust_forwarded"] = (True, "DATABRICKS_APP_NAME")
        for name, value in (options or {}).items():
            if value is not None:
                given[name] = (value, f"--{name.replace('_', '-')}")
        settings = cls(**{name: _typed(name, *item) for name, item in given.items()})
        settings._check({name: source for name, (_, source) in given.items()})
        return settings

    @property
    def memory_dsn(self) -> str | None:
        """The outside Postgres to use, "" when libpq's own variables say which; None: embedded."""
        if self.postgres_dsn:
            return self.postgres_dsn
        return "" if self.postgres_host else None

    def _check(self, sources: Mapping[str, str]) -> None:
        def refuse(name: str, why: str) -> SettingError:
            source = sources.get(name, name)
            return SettingError(f"{source} is {getattr(self, name)!r}: {why}")

        if not 0 <= self.port <= 65535:
            raise refuse("port", "must be 0 to 65535")
        if not 1 <= self.workers <= 64:
            raise refuse("workers", "must be 1 to 64")
        if self.grpc_edge not in ("grpcio", "h2"):
            raise refuse("grpc_edge", "must be grpcio or h2")
        if self.concurrent_calls < 1:
            raise refuse("concurrent_calls", "must be at least 1")
        if not 0 < self.drain_seconds <= 14:
            raise refuse("drain_seconds", "must be above 0 and at most 14")
        if not 0 <= self.telemetry_sample_rate <= 1:
            raise refuse("telemetry_sample_rate", "must be 0 to 1")
        if self.zerobus_batch_size < 1:
            raise refuse("zerobus_batch_size", "must be at least 1")
        if self.zerobus_flush_interval <= 0:
            raise refuse("zerobus_flush_interval", "must be above 0")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise refuse("log_level", "must be debug, info, warning or error")
        if (self.tls_cert is None) != (self.tls_key is None):
            name = "tls_key" if self.tls_key is None else "tls_cert"
            raise refuse(name, "--tls-cert and --tls-key go together")
        for name in ("tls_cert", "tls_key"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise refuse(name, "no such file")


# Names the first users' deployments already set (design of the environment), others follow
# LAKEMESH_<FIELD>.
_VARIABLES = {
    "postgres_host": "PGHOST",
    "telemetry_enabled": "TELEMETRY_ENABLED",
    "telemetry_sample_rate": "TELEMETRY_SAMPLE_RATE",
    "zerobus_batch_size": "ZEROBUS_BATCH_SIZE",
    "zerobus_flush_interval": "ZEROBUS_FLUSH_INTERVAL",
    "environment": "ENVIRONMENT",
    "databricks_app_name": "DATABRICKS_APP_NAME",
}
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise SettingError(f"config file {path}: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingError(f"config file {path}: must be a mapping of settings")
    return content


def _typed(name: str, value: Any, source: str) -> Any:
    default = Settings.__dataclass_fields__[name].default
    try:
        if name in ("tls_cert", "tls_key", "data_dir"):
            return Path(value)
        if isinstance(default, bool):
            return value if isinstance(value, bool) else _BOOLEANS[str(value).strip().lower()]
        if isinstance(default, int):
            return int(value)
        if isinstance(default, float):
            return float(value)
        if isinstance(default, tuple):
            items = value.split(",") if isinstance(value, str) else value
            return tuple(str(item).strip() for item in items if str(item).strip())
        return str(value)
    except (KeyError, ValueError, TypeError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}
        kind = wanted.get(type(default), "text")
        raise SettingError(f"{source} is {value!r}: must be {kind}") from None
