# Egret: `make` prints the targets.

# What runs in the network namespaces of the demo and of the tests; gcc links, clang compiles the BPF programs.
DEMO_PACKAGES := gcc libc6-dev clang linux-libc-dev iproute2 procps ethtool nftables curl bind9-dnsutils \
	dnsmasq-base iputils-ping traceroute iperf3 nginx
TEST_PACKAGES := $(DEMO_PACKAGES) iputils-tracepath coturn nmap socat tcpdump python3 python3-scapy \
	python3-venv redis-server redis-tools haproxy postgresql postgresql-client prometheus chromium
BENCH_PACKAGES := $(TEST_PACKAGES) libnginx-mod-stream
DIST_PACKAGES := gcc libc6-dev binutils clang linux-libc-dev python3 dpkg-dev
IMAGE_PACKAGES := gcc libc6-dev binutils clang linux-libc-dev debootstrap debian-archive-keyring fdisk e2fsprogs \
	dosfstools mtools grub-common \
	$(if $(filter amd64,$(shell dpkg --print-architecture)),grub-pc-bin grub-efi-amd64-bin,grub-efi-arm64-bin)
IMAGE_TEST_PACKAGES := qemu-system-x86 qemu-utils ovmf iproute2 procps dnsmasq-base curl iputils-ping nmap python3 \
	python3-venv

# Namespaces need root, building does not: without root, only what was built runs under sudo.
ifneq ($(shell id -u),0)
SUDO := sudo --preserve-env
export CARGO_TARGET_$(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER := $(SUDO)
endif

FUZZ_SECONDS ?= 60
LEAN := --release --no-default-features

# EC2 as others wrote it, for tests/aws.
MOTO := target/moto/bin/moto_server

# Terraform's language as HashiCorp reads it, for tests/terraform.rs.
HCL := target/hcl/node_modules/@cdktf/hcl-tools/main.wasm.gz

.DEFAULT_GOAL := help
.PHONY: help demo demo-failover demo-clean test simulate moto hcl check bench bench-cloud fuzz dist image test-image clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: ## a VPC in namespaces: real programs reach the internet through Egret (KEEP=1 leaves it running)
	@tests/lab/packages.sh $(DEMO_PACKAGES)
	cargo build $(LEAN) --bin egret --example demo
	@$(SUDO) target/release/examples/demo

demo-failover: ## two instances, of which one is killed: what moves, and when (builds the AWS SDK: minutes)
	@tests/lab/packages.sh $(DEMO_PACKAGES)
	cargo build --release --bin egret --example demo-failover
	@$(SUDO) target/release/examples/demo-failover

demo-clean: ## remove what `make demo KEEP=1` left
	@cargo build --quiet $(LEAN) --example demo
	@$(SUDO) target/release/examples/demo --clean

test: ## all tests: units, properties, simulator, and real programs in namespaces
	@tests/lab/packages.sh $(TEST_PACKAGES)
	@$(MAKE) --no-print-directory moto hcl
	cargo test --release
	@echo 'the NAT once more, with every session in a fast path from its first packet on'
	EGRET_OFFLOAD_AFTER=1 cargo test --release --test rfc --test engine --test properties

simulate: ## try to break a fleet of instances in 10,000 ways, in simulated time (for every night)
	EGRET_SEEDS=10000 cargo test $(LEAN) --test failover

moto: $(MOTO) ## install moto, an EC2 for tests, and cfn-lint, from PyPI
$(MOTO):
	@echo 'installing moto'
	@rm -rf target/moto && python3 -m venv target/moto
	@target/moto/bin/pip install --quiet --disable-pip-version-check \
		'moto[autoscaling,cloudformation,ec2,iam,server]==5.*' 'cfn-lint==1.*' pyyaml

hcl: $(HCL) ## install HashiCorp's parser and formatter, for tests, from npm
$(HCL):
	@command -v npm >/dev/null || tests/lab/packages.sh npm
	@echo 'installing a parser of HCL'
	@rm -rf target/hcl && mkdir -p target/hcl
	@npm install --prefix target/hcl --silent --no-audit --no-fund --ignore-scripts \
		@cdktf/hcl2json@0.21.0 @cdktf/hcl-tools@0.21.0

check: ## formatting, lints, documentation, licences and advisories
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --release --no-deps
	@if command -v cargo-deny >/dev/null; then cargo deny --log-level error check; \
	else echo 'not checked: licences and advisories (cargo install cargo-deny)'; fi

bench: ## measure the engine, and what `make dist` makes against the kernel's masquerading, HAProxy and nginx
	@tests/lab/packages.sh $(BENCH_PACKAGES)
	cargo build --profile dist --no-default-features --bin egret
	LAB_EGRET=$(CURDIR)/target/dist/egret cargo bench --no-default-features

bench-cloud: ## measure packets while EC2's API fails in all kinds of ways (builds the AWS SDK: minutes)
	@tests/lab/packages.sh $(BENCH_PACKAGES)
	cargo bench --bench cloud

fuzz: ## fuzz parsing and packet sequences (FUZZ_SECONDS=60 each)
	@tests/lab/packages.sh gcc g++ libc6-dev
	fuzz/run $(FUZZ_SECONDS)

dist: ## make a release in target/dist/packages: a tarball and a .deb (DIST_FLAGS=--no-default-features leaves AWS out)
	@tests/lab/packages.sh $(DIST_PACKAGES)
	deploy/dist $(DIST_FLAGS)

image: ## build a disk image that boots on EC2 (needs root)
	@tests/lab/packages.sh $(IMAGE_PACKAGES)
	cargo build --release --bin egret
	@$(SUDO) ami/build target/release/egret target/image

test-image: ## boot what `make image` built as EC2 does, in QEMU, and try what it is for (10 minutes)
	@tests/lab/packages.sh $(IMAGE_TEST_PACKAGES)
	@$(MAKE) --no-print-directory moto
	@$(SUDO) ami/test/run target/image

clean: ## remove what was built, and a kept demo
	@! ip netns list 2>/dev/null | grep -q '^egret-demo-' || $(MAKE) --no-print-directory demo-clean
	cargo clean
