#!/usr/bin/env bash
# One recipe from its raw images to its record: tools/recipes.sh NAME --raw FOLDER
# See tools/recipes.sh --help and docs/recipes.md.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
if [ ! -x "$python" ]; then
    echo "recipes: .venv is missing; run make env first" >&2
    exit 1
fi
exec "$python" "$root/tools/recipes/run.py" "$@"
