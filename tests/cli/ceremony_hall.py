"""A place for ceremonies: real tokens for the devices and for one role holder, the others with keys in files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.main import main
from softhsm.tokens import CreatedToken, create_pin_file, create_token

HOLDERS = ("anna", "bert", "carla")
"""Carla's key lives on a token of her own."""


class Hall:
    """A folder with tokens, role holders' keys, and a plan that a test may change."""

    def __init__(self, folder: Path, *, devices: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.plan = folder / "plan.toml"
        self.network = folder / "net"
        self.devices = dict(devices or {"device-a": "A", "device-b": "B"})
        self.tokens = {name: self._token(name) for name in (*self.devices, "carla")}
        for name in ("anna", "bert"):
            assert main(["ceremony", "key", "--key", str(folder / f"{name}.key"), "--json"]) == 0
        carla = ["--key", self.tokens["carla"].uri, "--public", str(folder / "carla.pub")]
        carla += ["--environment", f"SOFTHSM2_CONF={self.tokens['carla'].environment['SOFTHSM2_CONF']}"]
        assert main(["ceremony", "key", *carla, "--json"]) == 0
        self.write()

    def _token(self, name: str) -> CreatedToken:
        folder = self.folder / "tokens" / name
        folder.mkdir(parents=True)
        create_pin_file(folder / "pin")
        create_pin_file(folder / "so-pin")
        return create_token(folder, name, folder / "pin", folder / "so-pin")

    def pin(self, name: str) -> str:
        """A PIN, as the test may know it."""
        return (self.folder / "tokens" / name / "pin").read_text().strip()

    def write(self, **changes: Any) -> None:
        """The plan, with changes: `top` lines, `policies`, or `device_NAME` lines that are added to a device."""
        lines = changes.get("top", ['network = "prod"', "administrators_needed = 2", 'peers = ["peer-1"]'])
        for name in HOLDERS:
            lines = [*lines, "[[administrator]]", f'name = "{name}"', f'public_key = "{name}.pub"']
            held = f"{name}.key" if name != "carla" else self.tokens["carla"].uri
            lines.append(f"held = {json.dumps(held)}")
            if name == "carla":
                lines.append(f"environment = {{ SOFTHSM2_CONF = {json.dumps(str(self._store(name)))} }}")
        for name, node in self.devices.items():
            uri = changes.get(f"uri_{name}", self.tokens[name].uri)
            lines += ["[[device]]", f'name = "{name}"', f"uri = {json.dumps(uri)}", f'nodes = ["{node}"]']
            lines.append(f"environment = {{ SOFTHSM2_CONF = {json.dumps(str(self._store(name)))} }}")
            lines += changes.get(f"device_{name}", [])
            if name == next(iter(self.devices)):
                lines += ['center = "center-1"', 'ca = "ca"']
        nodes = ", ".join(f"'{node}'" for node in self.devices.values())
        for kind, expression in changes.get("policies", {"evidence": f"AND({nodes})"}).items():
            lines += ["[[policy]]", f'type = "{kind}"', f"expression = {json.dumps(expression)}"]
        self.plan.write_text("\n".join(lines) + "\n")

    def _store(self, name: str) -> Path:
        return self.folder / "tokens" / name / "softhsm2.conf"

    @property
    def transcript(self) -> Path:
        """The transcript's file."""
        return self.network / "ceremony" / "transcript"

    @property
    def genesis(self) -> Path:
        """Block 0."""
        return self.network / "genesis.json"

    def objects(self) -> dict[str, str]:
        """SHA-256 of every object's file on every token; a login itself writes `token.object` and `generation`."""
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((self.folder / "tokens").rglob("*.object"))
            if path.name != "token.object"
        }
