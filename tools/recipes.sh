#!/usr/bin/env bash
# One recipe from its raw images, or from prepared betons, to its record:
#   tools/recipes.sh NAME --raw FOLDER
#   tools/recipes.sh NAME --betons FOLDER
# See tools/recipes.sh --help and docs/recipes.md. Environment: PYTHON, the interpreter to use
# where there is no .venv (a GPU kit sets it).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=$(command -v "${PYTHON:-}" || true)
if [ -z "$python" ]; then
    echo "recipes: .venv is missing; run make env first" >&2
    exit 1
fi
exec "$python" "$root/tools/recipes/run.py" "$@"
