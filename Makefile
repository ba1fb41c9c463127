# Two commands for a newcomer: `make demo` and `make test`. Both make .venv first.
# TORCH_INDEX is where the CPU build of torch lives when pip's own places do not have it; `make GPU=1 ...` takes
# the build with CUDA from PyPI instead (several GB).

PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check -q
STAMP = $(VENV)/.installed

.PHONY: demo test lint types soak grid bench bench-remote bench-flat bench-growth memory pictures clean
.PHONY: lerobot-sets lerobot-check bench-lerobot
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -U pip
ifdef GPU
	$(PIP) install "torch==$(TORCH)"
else
	$(PIP) install "torch==$(TORCH)+cpu" 2>/dev/null || $(PIP) install "torch==$(TORCH)+cpu" --extra-index-url $(TORCH_INDEX)
endif
	$(PIP) install -c constraints.txt -e ".[dev,bench]"
	touch $@

demo: $(STAMP)
	$(VENV)/bin/python examples/demo.py

# Tests wait more than they reckon, so two at a time take about half as long; a file's tests stay together, for its fixtures.
TESTS_AT_ONCE ?= 2
test: $(STAMP)
	$(VENV)/bin/python -m pytest -m "alone and not soak and not grid"
	$(VENV)/bin/python -m pytest -m "not alone and not soak and not grid" -n $(TESTS_AT_ONCE) --dist loadfile

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# mypy does not follow the editable install's finder, so it reads a plain copy.
types: $(STAMP)
	rm -rf build/types
	mkdir -p build/types/source
	cp -r pyproject.toml README.md LICENSE epistream sharding cache loader configs build/types/source/
	$(PIP) install --no-deps --target build/types/site build/types/source
	cd build/types && MYPYPATH=site ../../$(VENV)/bin/python -m mypy --config-file ../../pyproject.toml -p epistream

# The comparison with other loaders, in an environment of its own (their packages are many). Data are written to
# BENCH_DATA once (15 GB); BENCH_SOURCE is a folder of ALOHA episodes with JPEG cameras. MINUTES bounds the measuring:
# `make bench ROUNDS=5 MINUTES=60` for quieter medians.
BENCH_VENV ?= benchmarks/.venv
BENCH_SOURCE ?= examples/data/aloha
BENCH_DATA ?= benchmarks/data
ROUNDS ?= 3
MINUTES ?= 18
BENCH_RUN = cd benchmarks && $(abspath $(BENCH_VENV))/bin/python
BENCH_FROM = --source $(abspath $(BENCH_SOURCE)) --data $(abspath $(BENCH_DATA))
BENCH_PIP = $(BENCH_VENV)/bin/python -m pip --disable-pip-version-check -q
BENCH_STAMP = $(BENCH_VENV)/.installed

$(BENCH_STAMP): benchmarks/peers/requirements.txt benchmarks/peers/requirements-robomimic.txt \
		benchmarks/peers/requirements-lerobot.txt constraints.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_PIP) install "torch==$(TORCH)+cpu" 2>/dev/null || $(BENCH_PIP) install "torch==$(TORCH)+cpu" --extra-index-url $(TORCH_INDEX)
	grep '^torch==' constraints.txt > $(BENCH_VENV)/torch.txt
	$(BENCH_PIP) install -c $(BENCH_VENV)/torch.txt -r benchmarks/peers/requirements.txt -e .
	-$(BENCH_PIP) install --no-deps -r benchmarks/peers/requirements-robomimic.txt
	-$(BENCH_PIP) install --no-deps -r benchmarks/peers/requirements-lerobot.txt
	touch $@

bench: $(BENCH_STAMP)
	$(BENCH_RUN) -m peers.run $(BENCH_FROM) --rounds $(ROUNDS) --minutes $(MINUTES)

# Several ranks of one node over the same remote bytes: REMOTE.md.
bench-remote: $(BENCH_STAMP)
	$(BENCH_RUN) -m remote.run $(BENCH_FROM) --rounds $(ROUNDS)

# 10 shards against 1,000, early against late in 100,000 batches: FLATNESS.md.
bench-flat: $(BENCH_STAMP)
	$(BENCH_RUN) flatness.py

# How cost grows with episodes, entries, nodes and jobs: GROWTH.md. BEFORE is an earlier commit to compare with.
bench-growth: $(STAMP)
	$(VENV)/bin/python benchmarks/growth.py $(if $(BEFORE),--before $(BEFORE)) --rounds $(ROUNDS)

# Memory of 1, 2 and 4 ranks beside caches of every process: benchmarks/MEMORY.md.
memory: $(STAMP)
	$(VENV)/bin/python benchmarks/memory_ranks.py --plot benchmarks/memory_ranks.png

# LeRobot's own readers and writers, each version in an environment of its own: they write the small data sets of the
# tests anew, read them, read what epistream exports, and are measured beside it.
LEROBOT_VENVS = benchmarks/lerobot/.venv
LEROBOT_SETS = tests/sharding/lerobot/sets
LEROBOT_STAMPS = $(LEROBOT_VENVS)/v30/.installed $(LEROBOT_VENVS)/v21/.installed
LEROBOT_DATA ?= benchmarks/data/lerobot

$(LEROBOT_VENVS)/%/.installed: benchmarks/lerobot/requirements-%.txt constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q "torch==$(TORCH)+cpu" 2>/dev/null || \
		$(@D)/bin/python -m pip install -q "torch==$(TORCH)+cpu" --extra-index-url $(TORCH_INDEX)
	$(@D)/bin/python -m pip install -q --no-deps -r $<
	touch $@

lerobot-sets: $(LEROBOT_STAMPS)
	$(LEROBOT_VENVS)/v30/bin/python benchmarks/lerobot/write_sets.py $(LEROBOT_SETS)
	$(LEROBOT_VENVS)/v21/bin/python benchmarks/lerobot/write_sets.py $(LEROBOT_SETS)

# Every stored set, read again by the LeRobot of its version.
lerobot-check: $(LEROBOT_STAMPS)
	set -e; for found in $(LEROBOT_SETS)/*_expected.npz; do \
		root=$${found%_expected.npz}; version=v21; case $$root in *_v30) version=v30;; esac; \
		$(LEROBOT_VENVS)/$$version/bin/python benchmarks/lerobot/check_export.py $$root $$found; \
	done

# Its loaders beside epistream on LEROBOT_SET, a data set v3.0 with two cameras, eight times over: LEROBOT.md.
bench-lerobot: $(STAMP) $(LEROBOT_VENVS)/v30/.installed
	test -d $(LEROBOT_DATA) || $(LEROBOT_VENVS)/v30/bin/python benchmarks/lerobot/join_copies.py $(LEROBOT_SET) $(LEROBOT_DATA)
	$(VENV)/bin/python benchmarks/lerobot/run.py $(LEROBOT_DATA) --lerobot $(LEROBOT_VENVS)/v30/bin/python --rounds $(ROUNDS)

# The pictures of docs/concepts.md and CONTRIBUTING.md.
pictures: $(STAMP)
	$(VENV)/bin/python docs/pictures.py
	$(VENV)/bin/python docs/rooms.py

soak: $(STAMP)
	$(VENV)/bin/python -m pytest -m soak --timeout 3600
	FUZZ_EXAMPLES=1500 $(VENV)/bin/python -m pytest tests/fuzz --timeout 3600

# Every trainer x ranks x workers x ways to resume, the windows of each rank beside the reference's; a table at the end.
grid: $(STAMP)
	$(VENV)/bin/python -m pytest tests/trainers/test_grid.py tests/trainers/test_lightning.py -m "not soak" $(if $(TRAINER),-k "$(TRAINER)")

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out
