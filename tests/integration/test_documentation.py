"""What the README and the examples show is run as it stands."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.support.running_bridge import RunningBridge

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


async def _output_of(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_the_readmes_python_writes_and_reads(bridge: RunningBridge, tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert '"127.0.0.1:50051"' in code
    script = tmp_path / "readme.py"
    script.write_text(code.replace("127.0.0.1:50051", bridge.address))
    assert await _output_of(str(script)) == "every token, once"


async def test_the_example_writes_and_reads(bridge: RunningBridge) -> None:
    output = await _output_of(str(ROOT / "examples" / "produce_and_subscribe.py"), bridge.address)
    assert output == "every token, once, in order, with an end \n"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_what_the_readme_links_to_is_there(path: str) -> None:
    assert (ROOT / path).exists()
