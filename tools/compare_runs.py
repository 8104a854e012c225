"""Compare how many tests pytest collects with how many a report says were run."""

import re
import subprocess
import sys
from pathlib import Path

report = Path(sys.argv[1]).read_text("utf-8")
# A test whose teardown fails has a second entry.
run = set(re.findall(r'<testcase classname="[^"]*" name="[^"]*"', report))
listed = subprocess.run(
    [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"],
    check=True,
    capture_output=True,
    text=True,
).stdout
(collected,) = re.findall(r"^(\d+) tests collected", listed, flags=re.MULTILINE)
print(f"{collected} collected, {len(run)} run")
sys.exit(int(collected) != len(run))
