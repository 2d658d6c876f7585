# make quickstart   from nothing to a translated, scored test set (7 minutes on 2 cores; QUICKSTART_FLAGS=--long: 15)
# make compare      the same with the softmax and with each head, two tables (an hour and more)
# make pretrain-demo  a small language model with the softmax and with a cascade, and a picture of both (10 minutes)
# make gpu-check    output layers, trainings and beam search on a GPU: are they right, how fast are they (13 minutes)
# make test         every test;  make test-fast: without the slow ones
# make test-oldest  the tests that are not slow, with the oldest torch that setup.py allows (20 minutes, 6 GB)
# make lint         ruff and mypy
# make docs         the documentation, in site/index.html;  make docs-serve: the same at 127.0.0.1:8000, made anew on changes
# make dist         a wheel and an sdist in dist/, each tried in a new environment (a few minutes, 2 GB for a while)
# make clean        remove what the above made
#
# PYTHON=python3.12 chooses the interpreter of .venv; PIP_FLAGS="..." is given to pip install.

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
RUN := PATH="$(BIN):$$PATH"
# Tests run in two processes of one thread each: more threads than cores only wait for each other. A file's
# tests stay in one process, so that a model trained for all of them is trained once. The order of files is that of
# tests/order.py.
PYTEST := $(RUN) OMP_NUM_THREADS=1 python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
PYTEST_FLAGS :=

export PYTHON PIP_FLAGS VENV

.PHONY: quickstart compare pretrain-demo gpu-check venv test test-fast test-oldest lint docs docs-serve dist clean

# The estimate comes before what it is about, the installation.
quickstart:
	@scripts/recipes/quickstart.sh --estimate $(QUICKSTART_FLAGS)
	@$(MAKE) --no-print-directory venv
	@$(RUN) scripts/recipes/quickstart.sh $(QUICKSTART_FLAGS)

# COMPARE_FLAGS="--seeds 1,2 --jobs 2" and the like: scripts/study/study.py --help tells all.
COMPARE := --study examples/translation/compare.toml --out compare
compare: $(VENV)/.installed
	@$(RUN) python scripts/study/study.py $(COMPARE) --source examples/translation/data $(COMPARE_FLAGS)
	@$(RUN) python scripts/study/study_times.py $(COMPARE)
	@$(RUN) python scripts/study/study_report.py compare

# DEMO_FLAGS="--updates 1000 --layers 6" for a larger one; scripts/recipes/pretrain_demo.py --help tells all.
pretrain-demo: $(VENV)/.installed-plot
	@$(RUN) python scripts/recipes/pretrain_demo.py $(DEMO_FLAGS)

# With PYTHON=python3 that interpreter runs it, whose torch has CUDA, and no .venv is made; parts that run fairseq's
# commands want ve-fairseq for it. GPU_FLAGS="--parts d,e --seconds d=400" and the like: scripts/gpu/check.py --help.
gpu-check: $(if $(PYTHON),,$(VENV)/.installed)
	@$(if $(PYTHON),$(PYTHON),$(BIN)/python) scripts/gpu/check.py $(GPU_FLAGS)

venv: $(VENV)/.installed

$(VENV)/.installed: setup.py constraints.txt mhe_fairseq/version.py
	@scripts/make_venv.sh
	@touch $@

$(VENV)/.installed-plot: $(VENV)/.installed
	@scripts/make_venv.sh plot
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@scripts/make_venv.sh docs
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@scripts/make_venv.sh test,lint,plot,docs
	@touch $@

test: $(VENV)/.installed-dev
	$(PYTEST) $(PYTEST_FLAGS)

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow" --hypothesis-profile=fast $(PYTEST_FLAGS)

# In an environment of its own, .venv-oldest.
test-oldest:
	@VENV= scripts/oldest_torch.sh

lint: $(VENV)/.installed-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

# Links, anchors, formulas and docstrings that are wrong are errors, and named. Nothing is fetched.
MKDOCS := $(RUN) NO_MKDOCS_2_WARNING=1 python -m mkdocs
docs: $(VENV)/.installed-docs
	@$(MKDOCS) build --strict --quiet
	@echo "documentation: site/index.html"

docs-serve: $(VENV)/.installed-docs
	@$(MKDOCS) serve --watch mhe_fairseq --watch scripts/docs
dist:
	@scripts/check_dist.sh

clean:
	rm -rf $(VENV) .venv-oldest quickstart quickstart-long compare pretrain-demo study build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
