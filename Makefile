# Everything a newcomer needs: `make demo` and `make test` set up what they use.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=

.PHONY: help demo test lint unit browser install clean

help:
	@echo "make demo           install, then run everything end to end and serve the result"
	@echo "make demo ARGS=--exit   the same, but stop after the answers"
	@echo "make test           install, then lint, type-check and run all tests"
	@echo "make unit           the fast checks only"
	@echo "make browser        find Chromium for the tests of the page, or install it"
	@echo "make clean          delete the demo's files and the environment"

# On Linux plain pip fetches torch with 3 GB of CUDA. Without a GPU, name PyTorch's CPU index (its
# address is on PyTorch's "Get Started" page): make demo TORCH_ARGS="--index-url <CPU index>"
TORCH_ARGS ?=
PIP = $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0 $(TORCH_ARGS)
	$(PIP) -e '.[dev]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/vmr demo $(ARGS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: lint
	$(BIN)/pytest -q tests/unit

# The page is tested in Chromium. Without one, Debian's is installed: as root at once, else after a question
# at a terminal, because that needs sudo.
NEED_CHROMIUM = The tests of the page need Chromium: install it (on Debian: apt-get install chromium), or name its \
program in CHROMIUM
browser:
	@[ -n "$$CHROMIUM" ] || command -v chromium || command -v chromium-browser || command -v google-chrome || { \
	  command -v apt-get >/dev/null && \
	  if [ "$$(id -u)" = 0 ]; then sudo=; else \
	    sudo=sudo && command -v sudo >/dev/null && [ -t 0 ] && \
	    printf 'The tests of the page need Chromium. Install it with sudo apt-get? [y/N] ' && \
	    read -r answer && [ "$$answer" = y ]; \
	  fi && \
	  $$sudo apt-get update -q && $$sudo apt-get install -qy --no-install-recommends chromium; } || \
	{ echo '$(NEED_CHROMIUM)' >&2; exit 1; }

test: unit browser
	$(BIN)/pytest -q --durations=12 tests/browser tests/integration tests/faults

clean:
	rm -rf demo $(VENV)
