"""Generates the Python code of protos/ (messages, stubs and their types) into src/, or checks that it is up to date.

Without arguments it brings src/ up to date; with --check it edits nothing, names what is stale and exits with 1. It
knows nothing of what the protos say. The generators are those of the environment that runs it; their versions end up
in the generated code, so they are pinned in pyproject.toml.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
SOURCES = ROOT / "src"
PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def generate(target: Path) -> None:
    """Generate the code of every proto below ``target``; raises CalledProcessError when protoc refuses one."""
    programs = Path(sys.executable).parent
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={PROTOS}",
        *(f"--plugin={plugin}={programs / plugin}" for plugin in PLUGINS),
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
        *sorted(str(proto.relative_to(PROTOS)) for proto in PROTOS.rglob("*.proto")),
    ]
    subprocess.run(command, check=True)  # noqa: S603 (nothing in the command comes from outside)


def generated_files(root: Path) -> dict[Path, bytes]:
    """Read every generated file below ``root``, by its path from there."""
    return {
        path.relative_to(root): path.read_bytes()
        for pattern in ("*_pb2*.py", "*_pb2*.pyi")
        for path in sorted(root.rglob(pattern))
    }


def differences(present: dict[Path, bytes], wanted: dict[Path, bytes]) -> dict[Path, str]:
    """Say of each file that is not as it should be what is wrong with it."""
    found = {}
    for path in sorted(present.keys() | wanted.keys()):
        if path not in present:
            found[path] = "missing"
        elif path not in wanted:
            found[path] = "left over: no proto makes it"
        elif present[path] != wanted[path]:
            found[path] = "differs"
    return found


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Generates the Python code of protos/ into src/.")
    parser.add_argument("--check", action="store_true", help="edit nothing; exit with 1 when src/ is not up to date")
    only_check: bool = parser.parse_args().check

    with tempfile.TemporaryDirectory() as directory:
        try:
            generate(Path(directory))
        except subprocess.CalledProcessError as error:
            return int(error.returncode)
        wanted = generated_files(Path(directory))
    stale = differences(generated_files(SOURCES), wanted)

    if only_check:
        for path, reason in stale.items():
            print(f"src/{path}: {reason}", file=sys.stderr)
        if stale:
            versions = ", ".join(f"{name} {version(name)}" for name in ("grpcio-tools", "mypy-protobuf"))
            print(f"Generated code is not what {versions} make of protos/; run `make generate`.", file=sys.stderr)
        return 1 if stale else 0

    for path in stale:
        if path in wanted:
            (SOURCES / path).parent.mkdir(parents=True, exist_ok=True)
            (SOURCES / path).write_bytes(wanted[path])
        else:
            (SOURCES / path).unlink()
        print(f"src/{path}: {'written' if path in wanted else 'removed'}")
    if not stale:
        print("Generated code is up to date.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
