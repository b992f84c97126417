# Sourced by run and test: makes .venv once, from the pinned constraints, and again only when these change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Each process of a run would otherwise compile more than a hundred modules of the testbed anew.
unset PYTHONDONTWRITEBYTECODE
python="${PYTHON:-python3}"
# Shows the latest line of what it reads on a terminal, and nothing elsewhere. Errors go past it.
progress() {
    if [ -t 2 ]; then
        local line
        while IFS= read -r line; do printf '\r\033[K  %.76s' "$line" >&2; done
        printf '\r\033[K' >&2
    else
        cat >/dev/null
    fi
}
stamp=".venv/.made-from"
# Unless PYTHON chooses another one, the interpreter of .venv itself is asked for its version: `python3` may be a script
# that looks for an interpreter, which takes a third of a second.
made_from() {
    cat pyproject.toml constraints.txt
    "${PYTHON:-.venv/bin/python}" -S -c 'import sys; print(sys.version)' 2>/dev/null
    pwd
}
if [ ! -x .venv/bin/testbed ] || [ "$(made_from)" != "$(cat "$stamp" 2>/dev/null)" ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "scripts: Python ≥ 3.11 is needed, $("$python" --version) found; set PYTHON=/path/to/python3.11" >&2
        exit 2
    }
    echo "making .venv (once, a few minutes) …" >&2
    rm -rf .venv
    "$python" -m venv .venv
    .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' | progress
    printf '%s' "$(made_from)" >"$stamp"
fi
