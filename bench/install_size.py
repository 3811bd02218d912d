"""Size on disk of what a vehicle installs: a fresh environment, per distribution.

    python bench/install_size.py [--extras ros]

Installs this checkout with the pinned versions into a temporary environment (the network or a
package cache is needed) and adds up the files of every distribution. pip itself is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

COUNT = """
import json, os
from importlib.metadata import distributions
sizes = {}
for one in distributions():
    files = [path for file in one.files or () if os.path.isfile(path := one.locate_file(file))]
    sizes[one.metadata['Name']] = sum(map(os.path.getsize, files))
print(json.dumps(sizes))
"""


def main() -> int:
    """Install, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--extras', default='', help='for example ros')
    extras = parser.parse_args().extras
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / 'bin' / 'python'
        target = f'{REPOSITORY}[{extras}]' if extras else str(REPOSITORY)
        pip = [python, '-m', 'pip', 'install', '--quiet', '-c', REPOSITORY / 'constraints.txt']
        subprocess.run([*pip, target], check=True)
        done = subprocess.run([python, '-c', COUNT], check=True, capture_output=True, text=True)
    sizes = json.loads(done.stdout)
    for tooling in ('pip', 'setuptools'):
        sizes.pop(tooling, None)
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:12]:
        print(f'{size / 1e6:8.1f} MB  {name}')
    print(f'{sum(sizes.values()) / 1e6:8.1f} MB  all {len(sizes)} distributions')
    return 0


if __name__ == '__main__':
    sys.exit(main())
