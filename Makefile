# xgem: everything starts here. Needs make and a Python >= 3.11 (with venv), nothing else.
#
#   make demo [FRONTAL=my.dcm | SENTENCE="..."] [SEED=0] [OUT=folder]   lateral and report from a frontal
#   make test [ARGS="-m 'not slow'"] [JOBS=2]    the test suite
#   make programs                                Debian, as root: a browser, a PACS and validators of DICOM for tests
#   make lint                                    ruff, import contracts and pyright
#   make docs                                    the documentation as build/site/index.html
#   make golden                                  records the losses anew that training is held to
#   make mutation [ARGS="fusion --sample 60"]    the share of small changes to the code that tests notice
#   make train-default [XGEM_DATA=folder] [RUN=folder] [PRECISION=bf16]   trains openi-256; call it again to go on
#   make embed [RUN=folder]                      ships what was trained: fp16, measured, with its card
#   make train-chexgen [RUN=folder] [PRECISION=bf16]    trains chexgen-small; make embed-chexgen ships it
#   make train-gpu GPU_DATA=folder [RUN=folder] [MINUTES=9] [SCALE=1 or STEPS=100]    trains openi-256 on a GPU, by the minute
#   make train-gpu-pieces [RUN=folder] [PIECES=folder]    its finished components, fp16, as files of at most 15 MB
#   make eval [MODEL=folder] [RUN=folder]        the tables of all routes, of joint outputs, of all families, on val

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The newest Python that will do and can make environments; override with `make PYTHON=/path/to/python ...`.
find_python = $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo "$$p"; break; fi; done)
PYTHON ?= $(find_python)

VENV ?= .venv
BIN := $(VENV)/bin
XGEM := $(BIN)/xgem
# One stamp for what running needs, one for what developing needs (which includes it).
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
WITH_EXTRAS := .[train,eval,published,onnx,slurm,dicom,serve,postgres,chat,peers,curate,docs,dev]
PIP_FLAGS ?=

XGEM_DATA ?= ../shared/data
PRESET ?= openi-256
RUN ?= runs/$(PRESET)
# bf16 is faster than float32 where the processor computes with it, and much slower where it does not.
PRECISION ?= no
# Open-i alone, which models are measured on, and the other collections that they learn from too.
MANIFEST := $(RUN)/openi.parquet
ADDED := $(RUN)/nih-boxes.parquet $(RUN)/covid.parquet
TRAINING := $(RUN)/training.parquet
MODEL ?=
OUT ?= out/demo
FRONTAL ?=
SENTENCE ?= Large left pleural effusion.
SEED ?= 0
SPLIT ?= val
JOBS ?= 2
ARGS ?=

.PHONY: help install install-dev programs demo test lint format docs golden mutation train-default eval embed train-chexgen \
	embed-chexgen train-gpu train-gpu-pieces train-gpu-join clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(INSTALLED)
install-dev: $(INSTALLED_DEV)

define set_up
@if [ -z "$(PYTHON)" ]; then \
	echo "xgem needs Python 3.11 or newer with its venv module; none found. Set PYTHON=/path/to/python." >&2; exit 1; fi
@echo "Setting up $(VENV) (torch is large: a few GB, some minutes the first time)"
@"$(PYTHON)" -m venv "$(VENV)"
@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e '$(1)'
endef

$(INSTALLED): pyproject.toml
	$(call set_up,.)
	@touch "$@"

$(INSTALLED_DEV): pyproject.toml
	$(call set_up,$(WITH_EXTRAS))
	@touch "$(INSTALLED)" "$@"

# Through the environment, so that the shell takes them as they are, quotes and all.
demo: export XGEM_SENTENCE = $(SENTENCE)
demo: export XGEM_FRONTAL = $(FRONTAL)
# Without FRONTAL, xgem first makes one from SENTENCE: no patient's image ships with it. Of four candidates each, the lateral and
# report are shown that agree best.
demo: $(INSTALLED)
ifeq ($(strip $(FRONTAL)),)
	$(XGEM) generate --report "$$XGEM_SENTENCE" --outputs frontal --seed $(SEED) --out "$(OUT)/prompt" --overwrite
	$(XGEM) generate --frontal "$(OUT)/prompt/frontal.png" --outputs lateral,report --num-candidates 4 --seed $(SEED) --out "$(OUT)" --overwrite
else
	$(XGEM) generate --frontal "$$XGEM_FRONTAL" --outputs lateral,report --num-candidates 4 --seed $(SEED) --out "$(OUT)" --overwrite
endif

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

programs: export DEBIAN_FRONTEND = noninteractive
programs:
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends chromium orthanc orthanc-dicomweb dcmtk dicom3tools openssl

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED_DEV)
	$(BIN)/mkdocs build --strict

# Only after a change that is meant to change what training computes; look at the difference before committing it.
golden: $(INSTALLED_DEV)
	XGEM_UPDATE_GOLDEN=1 $(BIN)/python -m pytest -q tests/train/test_golden_losses.py

mutation: $(INSTALLED_DEV)
	$(BIN)/python benchmarks/mutation.py $(ARGS)

# The manifest of a collection, and what two of them need beside their own folder.
BESIDE_openi := --extra "$(XGEM_DATA)/openi_extra"
BESIDE_nih-boxes := --nih "$(XGEM_DATA)/nih"
prepare = $(XGEM) data prepare $(1) "$(XGEM_DATA)/$(subst -,_,$(1))" $(BESIDE_$(1)) --out "$@"

$(MANIFEST): | $(INSTALLED_DEV)
	$(call prepare,openi)
$(ADDED): $(RUN)/%.parquet: | $(INSTALLED_DEV)
	$(call prepare,$*)
$(TRAINING): $(MANIFEST) $(ADDED)
	$(XGEM) data merge $^ --out "$@" --overwrite

# In passes: each goes on from the weights of the one before, with other batches and another noise. Generators learn from the
# report codec of the second. In the third, the encoders learn what texts state, and all see more of rare findings.
train-default: HOW := --preset "$(PRESET)" --data "$(TRAINING)" --precision $(PRECISION) --resume
train-default: SECOND := --init "$(RUN)/first" --out "$(RUN)/second" $(HOW)
train-default: THIRD := --init "$(RUN)/second" --seed 1 --out "$(RUN)" $(HOW)
train-default: $(INSTALLED_DEV) $(TRAINING)
	$(XGEM) data check "$(TRAINING)"
	for stage in image-vae image-decoder clip report-vae; do $(XGEM) train $$stage --out "$(RUN)/first" $(HOW) || exit; done
	$(XGEM) train report-vae --seed 1 --set report-vae.steps=3000 --set report-vae.learning_rate=6e-4 \
		--set report-vae.loss.recombined=0.5 $(SECOND)
	for stage in frontal lateral report; do $(XGEM) train $$stage $(SECOND) || exit; done
	$(XGEM) train clip --set clip.steps=1000 --set clip.learning_rate=6e-4 --set clip.loss.stated=3 \
		--set clip.loss.hard_negatives=2 --set clip.loss.balanced=0.4 $(THIRD)
	$(XGEM) train frontal --set frontal.steps=8000 --set frontal.loss.balanced=0.3 $(THIRD)
	$(XGEM) train lateral --set lateral.loss.balanced=0.3 $(THIRD)
	$(XGEM) train report --set report.steps=6000 --set report.loss.balanced=0.4 $(THIRD)
	$(XGEM) train joint $(THIRD)

# Joint outputs are measured where the model has what they need; 'all' is all families of measures. LIMIT studies, if given.
eval: MEASURED = $(if $(MODEL),--model "$(MODEL)") --data "$(MANIFEST)" --split $(SPLIT) --out "$(RUN)/eval" --overwrite
eval: GENERATED = $(MEASURED) --cache "$(RUN)/eval-cache"
eval: LIMITED = $(GENERATED) $(if $(LIMIT),--limit $(LIMIT))
eval: $(INSTALLED_DEV) $(MANIFEST)
	$(XGEM) eval codec $(MEASURED)
	$(XGEM) eval prompts $(GENERATED) --compile
	$(XGEM) eval routes $(LIMITED) --compile --report-samples 3
	$(if $(wildcard $(or $(MODEL),xgem/assets/$(PRESET))/alignment),$(XGEM) eval joint $(LIMITED) --compile --report-samples 3)
	$(XGEM) eval all $(LIMITED)

# What ships: the trained checkpoint as fp16, measured, with its card and the tables of docs/results.md written from the measures.
embed: $(INSTALLED_DEV) $(MANIFEST)
	$(XGEM) export "$(RUN)" "xgem/assets/$(PRESET)" --dtype float16 --overwrite
	$(MAKE) eval MODEL="xgem/assets/$(PRESET)"
	$(XGEM) eval card "$(RUN)/eval" --model "xgem/assets/$(PRESET)" \
		--notes "docs/cards/$(PRESET).md" --readme docs/results.md

# On the codec and encoders of openi-256: the text encoder learns what stands in front of texts; then ChexGen's stages: low
# resolution, twice that, control (with masks that a segmenter draws where nobody has; it is measured with hand-drawn ones).
CHEXGEN ?= runs/chexgen-small
CHEXGEN_INIT ?= xgem/assets/openi-256
SOURCES := openi nih-boxes segmentations severity cardiothoracic
MANIFESTS := $(SOURCES:%=$(CHEXGEN)/%.parquet)
$(MANIFESTS): $(CHEXGEN)/%.parquet: | $(INSTALLED_DEV)
	$(call prepare,$*)
$(CHEXGEN)/all.parquet: $(MANIFESTS)
	$(XGEM) data merge $^ --out "$@" --overwrite
$(CHEXGEN)/outlined.parquet: $(CHEXGEN)/all.parquet
	$(XGEM) data outline "$<" --out "$@" --overwrite

train-chexgen: TRAIN := $(XGEM) train
train-chexgen: HOW := --precision $(PRECISION) --resume
train-chexgen: ALL := --data "$(CHEXGEN)/all.parquet"
train-chexgen: $(INSTALLED_DEV) $(CHEXGEN)/all.parquet $(CHEXGEN)/outlined.parquet
	$(TRAIN) clip --preset chexgen-small-clip $(ALL) --init "$(CHEXGEN_INIT)" --out "$(CHEXGEN)/clip" $(HOW)
	$(TRAIN) frontal --preset chexgen-small-128 $(ALL) --init "$(CHEXGEN)/clip" --out "$(CHEXGEN)/low" $(HOW)
	$(TRAIN) frontal --preset chexgen-small $(ALL) --init "$(CHEXGEN)/low" --out "$(CHEXGEN)" $(HOW)
	$(TRAIN) control --preset chexgen-small --data "$(CHEXGEN)/outlined.parquet" --out "$(CHEXGEN)" $(HOW)

embed-chexgen: SHIPPED := xgem/assets/chexgen-small
embed-chexgen: $(INSTALLED_DEV) $(CHEXGEN)/all.parquet
	$(XGEM) export "$(CHEXGEN)" "$(SHIPPED)" --dtype float16 --overwrite
	$(XGEM) eval control --model "$(SHIPPED)" --data "$(CHEXGEN)/all.parquet" --split $(SPLIT) --limit 200 \
		--out "$(CHEXGEN)/eval" --cache "$(CHEXGEN)/eval-cache" --overwrite
	$(XGEM) eval prompts --seeds 4 --model "$(SHIPPED)" --data "$(CHEXGEN)/openi.parquet" --split $(SPLIT) \
		--out "$(CHEXGEN)/eval" --cache "$(CHEXGEN)/eval-cache" --overwrite
	$(XGEM) eval card "$(CHEXGEN)/eval" --model "$(SHIPPED)" --notes docs/cards/chexgen-small.md

# On one GPU, in calls of MINUTES that go on where the last one stopped. GPU_DATA is a folder of `xgem data pack`.
# GPU_PYTHON names a Python that has what xgem needs, where no environment can be made (without a network, for one).
GPU_PRESET ?= openi-256-gpu
GPU_DATA ?= runs/packed-256
GPU_PYTHON ?= $(BIN)/python
MINUTES ?= 9
SCALE ?= 1
STEPS ?=
BATCH ?=
GPU_PRECISION ?= bf16
PIECES ?= $(RUN)-pieces
train-gpu train-gpu-pieces train-gpu-join: PRESET := $(GPU_PRESET)
train-gpu train-gpu-pieces train-gpu-join: export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
GPU_INSTALLED := $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(INSTALLED))

train-gpu: $(GPU_INSTALLED)
	$(GPU_PYTHON) benchmarks/train_gpu.py --preset "$(GPU_PRESET)" --data "$(GPU_DATA)/manifest.parquet" --out "$(RUN)" \
		--minutes $(MINUTES) --scale $(SCALE) $(if $(STEPS),--steps $(STEPS)) $(if $(BATCH),--batch $(BATCH)) \
		--precision $(GPU_PRECISION) $(ARGS)

train-gpu-pieces: $(GPU_INSTALLED)
	$(GPU_PYTHON) benchmarks/pieces.py split "$(RUN)" "$(PIECES)"

train-gpu-join: $(GPU_INSTALLED)
	$(GPU_PYTHON) benchmarks/pieces.py join "$(PIECES)" "$(RUN)"

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
