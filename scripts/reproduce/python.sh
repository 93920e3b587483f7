# Sourced by the scripts in this folder: sets `python`, PYTHON or that of the set-up.
python=${PYTHON:-.venv/bin/python}
if ! command -v ${python%% *} > /dev/null; then
    echo "${python%% *} is not there; run 'make setup', or set PYTHON to a Python with the project's packages" >&2
    exit 2
fi
