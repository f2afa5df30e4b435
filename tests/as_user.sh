#!/bin/sh
# Runs the tests once more as an ordinary user, on trio, apart from those marked "once". The checkout, and the interpreter of its
# virtual environment, may lie where that user can't read: so both are made anew in a folder of their own, which is
# removed at the end.
set -eu
python=${NSORCH_USER_PYTHON:-/usr/bin/python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "as an ordinary user: skipped, there is no $python of 3.11 or newer that every user can run: on trio, .venv/bin/python -m pytest -k trio"
    exit 0
fi
top=$(cd "$(dirname "$0")/.." && pwd)
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT INT TERM
chmod 755 "$room"
mkdir "$room/work" "$room/work/shared"
for part in nsorch tests examples docs bench README.md pyproject.toml; do
    [ ! -e "$top/$part" ] || cp -r "$top/$part" "$room/work/"
done
[ ! -d "$top/../shared" ] || cp -r "$top/../shared" "$room/"
chmod -R a+rX,u+w "$room"
"$python" -m venv --without-pip "$room/venv"
"$top/.venv/bin/python" -m pip --disable-pip-version-check -q --python "$room/venv/bin/python" install \
    "$top[test]"
"$room/venv/bin/python" -m compileall -q "$room/work/nsorch" "$room/work/tests"
echo "as an ordinary user (uid 65534):"
cd "$room/work"
chown 65534 "$room/work"
setpriv --reuid 65534 --regid 65534 --clear-groups env HOME="$room/work" PYTHONDONTWRITEBYTECODE=1 \
    "$room/venv/bin/python" -m pytest -q --one-backend -m "not once"
