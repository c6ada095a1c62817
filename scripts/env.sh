# Sourced by the other scripts: makes the environment in .venv from a lock file, once, and puts it on PATH.
# Usage: . scripts/env.sh requirements.lock

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${CITYWARD_VENV:-$root/.venv}

cityward_environment() {
  local lock=$root/$1 python=${PYTHON:-python3} stamp=$venv/.cityward-installed want
  want="$(sha256sum "$lock" "$root/pyproject.toml" | sha256sum) $root"
  if [ -x "$venv/bin/cityward" ] && [ "$(cat "$stamp-$1" 2>/dev/null)" = "$want" ]; then
    export PATH="$venv/bin:$PATH"
    return
  fi
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "cityward needs Python 3.11 or newer; $python is not. Name another one: PYTHON=python3.12 $0" >&2
    exit 4
  }
  echo "Making the environment in $venv (once, a minute or two) …" >&2
  if [ ! -x "$venv/bin/pip" ]; then
    "$python" -m venv "$venv" || {
      echo "The venv module is missing. On Debian or Ubuntu: apt install python3-venv" >&2
      exit 4
    }
  fi
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-compile --require-hashes -r "$lock" >&2 &&
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --editable "$root" >&2 || {
    echo "The installation failed; the lines above say why. Nothing outside $venv was changed." >&2
    exit 5
  }
  # On all cores, as pip does not. A package may hold examples that do not compile.
  "$venv/bin/python" -m compileall -qq -j 0 "$venv/lib" >/dev/null 2>&1 || true
  printf '%s' "$want" >"$stamp-$1"
  export PATH="$venv/bin:$PATH"
}
